"""What a client asks for: `TrainSpec`, validated once, here.

`TrainOptions` holds the plain part, which the master reads; `TrainSpec` adds the Python objects, which only the
client and the workers ever see; `Submission` is the form that crosses the network.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from paceline.errors import InvalidSpec, NotYetSupported
from paceline.findings import invalid_spec
from paceline.frameworks.adapt import adapted
from paceline.grid import DEFAULT_MICROBATCHES, Grid, ShardOrder
from paceline.stop import (
    MOST_WORKERS,
    Count,
    Metric,
    Patience,
    StopCondition,
    better,
    for_callers,
    leaves,
    must_end,
    parse_duration,
    step_bound,
)

BUILT_IN_VALUES = ("loss",)
EXAMPLES = {  # of fields whose kind does not tell what to write
    "stop": "pl.MaxEpochs(10) | pl.Patience('val_loss', 3)",
    "optimizer": "functools.partial(torch.optim.AdamW, lr=1e-3)",
    "loss": "torch.nn.functional.cross_entropy, or another function of outputs and targets",
    "metrics": "{'accuracy': function of outputs and targets}",
    "lr_schedule": "a function (samples_seen, total_samples) -> factor",
    "resources": "'auto', or pl.Resources(workers=4)",
}
Amount = Annotated[int, Field(ge=0, lt=2**53)]


def parse_bytes(value: int | str) -> int:
    """`2147483648`, `"2GiB"` and `"2 GB"` in bytes. Raises ValueError on anything else."""
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*(\d{1,16}(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{value!r} is not an amount of memory; write bytes, or e.g. '2GiB'")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


class Resources(BaseModel):
    """What the job may or must use; anything left out is the master's choice.

    workers: exactly this many training processes. device: "cpu", "cuda" or "mps". memory: bytes that each worker
    needs, e.g. "4GiB". nodes: names of the only nodes that may be used. max_cost: of all nodes to the stop condition's
    bound, at their prices an hour.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: Count | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    memory: Count | None = None
    nodes: tuple[str, ...] | None = None
    max_cost: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @for_callers
    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as invalid:
            raise invalid_spec(invalid, Resources.model_fields) from None

    @field_validator("memory", mode="before")
    @classmethod
    def _memory_in_bytes(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value


def _auto_is_no_wish(value: Any) -> Any:
    return Resources() if value == "auto" or value is None else value


AskedResources = Annotated[Resources, BeforeValidator(_auto_is_no_wish)]  # "auto": the master's choice


class Keep(BaseModel):
    """Which model is delivered: the last one, or the one with the best value of a metric."""

    model_config = ConfigDict(frozen=True)

    metric: str | None = None
    mode: Literal["min", "max"] = "min"

    @classmethod
    def parse(cls, text: str) -> Keep:
        """Read `"last"`, `"best:val_loss"` or `"best:val_score:max"`. Raises ValueError with the remedy."""
        if text == "last":
            return cls()
        match = re.fullmatch(r"best:([^:]+)(?::(min|max))?", text)
        if match is None:
            raise ValueError(f"keep={text!r}; write 'last', 'best:val_loss', or 'best:NAME:max'")
        mode = match[2] or better(match[1])
        if mode is None:
            raise ValueError(f"keep={text!r} does not say which way is better; write 'best:{match[1]}:min' or ':max'")
        return cls(metric=match[1], mode=mode)


class PlainFields(BaseModel):
    """The plain fields that a spec and its options have alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    batch_size: Count = 32
    threads: Count = 1
    drop_last: bool = False
    clip_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    stop: StopCondition
    keep: str = "last"
    eval_every: Count | None = None
    checkpoint_every: Count | None = None
    resources: AskedResources = Resources()
    sync: Literal["auto", "exact", "sharded", "local"] = "auto"
    reproducible: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    precision: Literal["fp32", "bf16-mixed"] = "fp32"
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    name: str | None = Field(default=None, max_length=200)

    @field_validator("keep")
    @classmethod
    def _keep_parses(cls, value: str) -> str:
        Keep.parse(value)
        return value

    @field_validator("deadline", mode="before")
    @classmethod
    def _deadline_in_seconds(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parts_that_exist(self) -> Self:
        if self.sync == "local":
            raise NotYetSupported("sync='local' is not built yet.", "Use sync='exact' or leave it out.")
        if not must_end(self.stop):
            raise InvalidSpec(
                f"stop={self.stop} may never be met.", "Add a bound: `| pl.MaxEpochs(100)` or `| pl.MaxTime('1h')`."
            )
        return self


class TrainOptions(PlainFields):
    """The plain part of a spec: everything that decides how training goes, and nothing that must be pickled."""

    microbatches: Count = DEFAULT_MICROBATCHES

    @model_validator(mode="after")
    def _as_many_as_there_are(self) -> Self:
        cell_size = -(-self.batch_size // self.microbatches)  # 10 samples in 8 cells of 2 are 5: that is their number
        cells = -(-self.batch_size // cell_size)
        if cells > MOST_WORKERS:
            raise InvalidSpec(
                f"microbatches={self.microbatches} cuts a batch into {cells:,}; {MOST_WORKERS:,} are the most.",
                f"Set microbatches={MOST_WORKERS} or fewer; no more workers could share a batch.",
            )
        object.__setattr__(self, "microbatches", cells)
        return self

    def grid(self, num_samples: int, order: ShardOrder | None = None) -> Grid:
        """Over so many training samples. order: of data in shards; whoever only counts samples may do without."""
        return Grid(num_samples, self.batch_size, self.microbatches, self.drop_last, self.seed, order)

    def with_resources(self, **changes: Any) -> Self:
        """The same but for these fields of `resources`, which are not checked anew."""
        return self.model_copy(update={"resources": self.resources.model_copy(update=changes)})


class TrainSpec(PlainFields):
    """A training job, whole: the model, its data, how to train it, when to stop.

    model: an `nn.Module`, or a callable without arguments that builds one (under `seed`, on the worker).
        The client calls it once, on torch's meta device, to tell its size; never with `sync="exact"`.
    train_data, val_data: a map-style Dataset; a tuple of arrays or tensors of equal length, the targets last; a
        `(table, "target column")` pair of a pandas or Arrow table; `ShardedData`, which need not fit on a node; or a
        callable that builds a Dataset or ShardedData on the node.
    loss: `loss(outputs, targets) -> scalar`, the mean over the samples; or training_step: `(model, batch) -> scalar`.
    optimizer: `optimizer(named_parameters) -> torch.optim.Optimizer`; `partial(torch.optim.AdamW, lr=1e-3)` is one.
    lr_schedule: `(samples_seen, total_samples) -> factor` of the optimizer's own learning rates.
    metrics: name -> `fn(outputs, targets)`, averaged by samples, or an object with `update`, `compute` and `reset`.
    augment: `augment(sample) -> sample`, for training samples, under a seed of the sample's own.
    collate: `collate(list of samples) -> batch`.
    batch_size: samples of one optimizer step, over all workers. microbatches: the fixed slices that it is cut into;
        left out, 1 to 8 of them by the model's operations, so that cutting costs little.
    threads: torch threads of a worker. eval_every, checkpoint_every: in steps; by default an epoch, and by time.
    deadline: seconds, or e.g. "10m", from the submission; a job that is predicted to miss it is refused.

    DataLoaders, a LightningModule with its data module, and a Hugging Face model with its collator are taken as they
    are; they bring fields that are left out here (`frameworks/adapt.py`).

    Raises InvalidSpec or NotYetSupported, with what to change.
    """

    microbatches: Count | None = None
    model: Any
    train_data: Any
    val_data: Any = None
    loss: Callable[..., Any] | None = None
    training_step: Callable[..., Any] | None = None
    optimizer: Callable[..., Any]
    lr_schedule: Callable[[int, int], float] | None = None
    metrics: Mapping[str, Any] = {}
    augment: Callable[[Any], Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None

    @for_callers
    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as invalid:
            raise invalid_spec(invalid, TrainSpec.model_fields, EXAMPLES) from None

    @model_validator(mode="before")
    @classmethod
    def _of_other_frameworks(cls, fields: Any) -> Any:
        return adapted(fields) if isinstance(fields, dict) else fields

    @field_validator("optimizer", mode="before")
    @classmethod
    def _one_optimizer_factory(cls, value: Any) -> Any:
        if isinstance(value, list | tuple | dict):
            raise InvalidSpec(
                f"optimizer= holds {len(value)} entries; several optimizers are not supported.",
                "Give one callable; per-layer settings go into its parameter groups.",
            )
        if hasattr(value, "param_groups"):
            raise InvalidSpec(
                "optimizer= is an optimizer that is already bound to this process's parameters.",
                "Give the way to make it: functools.partial(torch.optim.AdamW, lr=1e-3).",
            )
        return value

    @field_validator("train_data", "val_data")
    @classmethod
    def _not_a_stream(cls, value: Any) -> Any:
        iterable_only = hasattr(value, "__iter__") and not hasattr(value, "__getitem__") and not callable(value)
        if isinstance(value, types.GeneratorType) or iterable_only or _is_iterable_dataset(value):
            raise InvalidSpec(
                f"the data is a stream ({type(value).__name__}); its samples have no numbers.",
                "Give a map-style Dataset with __len__ and __getitem__, arrays, or a callable that builds one.",
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSpec:
        if (self.loss is None) == (self.training_step is None):
            raise InvalidSpec("a spec takes exactly one of loss= and training_step=.", "Give one of them.")
        if self.metrics and self.val_data is None:
            raise InvalidSpec(
                f"metrics {sorted(self.metrics)} need validation data.", "Give val_data=, or leave metrics out."
            )
        for name, metric in self.metrics.items():
            if not callable(metric) and not hasattr(metric, "compute"):
                raise InvalidSpec(
                    f"metrics[{name!r}] is a {type(metric).__name__}.", f"Write metrics={EXAMPLES['metrics']}."
                )
        if self.lr_schedule is not None and not _bounded_by_steps(self.stop):
            raise InvalidSpec(
                f"lr_schedule= needs the total number of samples, and stop={self.stop} does not bound it.",
                "Add `| pl.MaxEpochs(n)` or `| pl.MaxSteps(n)`.",
            )
        _check_names(self, self.values)
        return self

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the values that each evaluation yields."""
        if self.val_data is None:
            return BUILT_IN_VALUES
        return (*BUILT_IN_VALUES, "val_loss", *(f"val_{name}" for name in self.metrics))

    def options(self) -> TrainOptions:
        """The plain part, for the master; `DEFAULT_MICROBATCHES` where their number is not chosen yet."""
        fields = {name: getattr(self, name) for name in TrainOptions.model_fields}
        return TrainOptions(**{name: value for name, value in fields.items() if value is not None})

    def program(self) -> dict[str, Any]:
        """The Python objects other than the data, for the workers."""
        return {name: getattr(self, name) for name in PROGRAM_FIELDS}


PROGRAM_FIELDS = (
    "model", "loss", "training_step", "optimizer", "lr_schedule", "metrics", "augment", "collate",
)  # fmt: skip


def _is_iterable_dataset(value: Any) -> bool:
    return any(kind.__name__ == "IterableDataset" for kind in type(value).__mro__)


def _bounded_by_steps(stop: StopCondition) -> bool:
    return step_bound(stop, steps_per_epoch=1) is not None


def _check_names(options: PlainFields, values: tuple[str, ...]) -> None:
    """Raise InvalidSpec where stop= or keep= names a value that is never evaluated."""
    used = [(str(leaf), leaf.name) for leaf in leaves(options.stop) if isinstance(leaf, Metric | Patience)]
    metric = Keep.parse(options.keep).metric
    used += [] if metric is None else [(f"keep={options.keep!r}", metric)]
    for use, name in used:
        if name not in values:
            raise InvalidSpec(
                f"{use} names {name!r}, which this job never evaluates.", f"It evaluates: {', '.join(values)}."
            )


class PackageRef(BaseModel):
    """A pickle and its out-of-band buffers, each a blob named by its sha256. Opened in workers only."""

    model_config = ConfigDict(frozen=True)

    pickle: str
    buffers: tuple[str, ...] = ()
    nbytes: Amount = 0

    @property
    def blobs(self) -> tuple[str, ...]:
        return (self.pickle, *self.buffers)


class Versions(BaseModel):
    """What must agree between client, master and nodes."""

    model_config = ConfigDict(frozen=True)

    paceline: str
    python: str
    torch: str | None = None


class Facts(BaseModel):
    """What the client knows about the model and the data without training; None where it can't.

    flop_per_sample: of a forward. chose_microbatches: the spec left their number out. unit_bytes: of the largest unit
    that the model is cut into where it is sharded. fingerprint: the same for models that cost the same, whatever their
    weights.
    """

    model_config = ConfigDict(frozen=True)

    parameters: Amount | None = None
    parameter_bytes: Amount | None = None
    unit_bytes: Amount | None = None
    flop_per_sample: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    chose_microbatches: bool = False
    fingerprint: Annotated[str, Field(max_length=64)] | None = None
    train_samples: Amount | None = None
    val_samples: Amount | None = None
    values: tuple[str, ...] = BUILT_IN_VALUES


class Submission(BaseModel):
    """A job as it crosses the network. The same `request_id` twice is one job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: str = Field(min_length=1, max_length=100)
    versions: Versions
    options: TrainOptions
    facts: Facts
    program: PackageRef
    train_data: PackageRef
    val_data: PackageRef | None = None

    @model_validator(mode="after")
    def _names_are_evaluated(self) -> Submission:
        _check_names(self.options, self.facts.values)
        return self

    @property
    def packages(self) -> tuple[PackageRef, ...]:
        return (self.program, self.train_data, *((self.val_data,) if self.val_data else ()))

    @property
    def blobs(self) -> tuple[str, ...]:
        """All that the workers need of the master."""
        return tuple(blob for package in self.packages for blob in package.blobs)
