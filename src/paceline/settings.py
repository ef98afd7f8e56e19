"""Settings of a master: the one door by which they enter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from paceline.findings import invalid_spec
from paceline.stop import for_callers

DEFAULT_PORT = 8470
LOG_BYTES = 64 * 2**20
LogLevel = Literal["info", "warning"]


class Quota(BaseModel):
    """The most that a user's jobs hold at once, None for no bound. priority: the highest that they may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cores: NonNegativeInt | None = None
    workers: NonNegativeInt | None = None
    jobs: NonNegativeInt | None = None
    priority: int | None = None

    @classmethod
    def parse(cls, text: str) -> Quota:
        """Read `"cores:8,jobs:2"`. Raises InvalidSpec for other names or numbers."""
        bounds = [bound.partition(":") for bound in text.split(",")]
        try:
            return cls.model_validate({name: most for name, _, most in bounds})
        except ValidationError as invalid:
            raise invalid_spec(invalid, cls.model_fields) from None


class MasterSettings(BaseModel):
    """folder: all durable state. port: 0 lets the system choose. advertise: the host name that others reach us by.

    agents, cores: nodes that the local engine emulates, and the cores of each. price: of an hour of each node that the
    engine reaches. ray_address: of a running Ray cluster, None to start one here. tls_ca: what clients verify the
    certificate with. quotas, shares: by user, "*" for all who are not named; a share is 1 unless given. min_run_s: no
    job is preempted before. log_bytes: of what each rank of a job prints, the newest are kept. parent_pipe: end when
    stdin does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    advertise: str | None = None
    engine: Literal["local", "ray"] = "local"
    agents: PositiveInt = 1
    cores: PositiveInt | None = None
    price: NonNegativeFloat = 0.0
    ray_address: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    quotas: dict[str, Quota] = {}
    shares: dict[str, PositiveFloat] = {}
    min_run_s: NonNegativeFloat = 60.0
    log_bytes: PositiveInt = LOG_BYTES
    parent_pipe: bool = False
    log_level: LogLevel = "info"

    @for_callers
    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as invalid:
            raise invalid_spec(invalid, MasterSettings.model_fields) from None

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert else "http"

    @property
    def advertised_host(self) -> str:
        """As a URL holds it: an IPv6 address in brackets."""
        host = self.advertise or self.host
        return f"[{host}]" if ":" in host else host
