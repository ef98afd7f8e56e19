"""A throw-away certificate for a master on an address that others reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.testing.system import tool


@dataclass(frozen=True)
class Certificate:
    """Signed by itself: `cert` is also what to trust."""

    cert: Path
    key: Path


def make_certificate(address: str, folder: Path) -> Certificate:
    """For the IP address, for a day, in the folder. Raises CalledProcessError."""
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    extensions = (f"subjectAltName=IP:{address}", "keyUsage=critical,digitalSignature,keyCertSign")
    tool(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "1",
        "-subj", "/CN=paceline-testing", *(word for text in extensions for word in ("-addext", text)),
        "-keyout", str(made.key), "-out", str(made.cert),
    )  # fmt: skip
    return made
