"""The names that users rely on: pinned to docs/api.md, and light to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import paceline as pl
from paceline.errors import all_errors
from paceline.settings import MasterSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading, each cell without its backticks."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


def test_the_public_names_are_those_of_the_document() -> None:
    documented = [row[0] for heading in ("Names", "Errors") for row in table(heading)]
    assert sorted(documented) == sorted(pl.__all__)
    assert len(set(pl.__all__)) == len(pl.__all__)


def test_every_public_name_is_there_and_documented_in_itself() -> None:
    assert dir(pl) == sorted(pl.__all__)
    for name in pl.__all__:
        assert getattr(pl, name).__name__ == name
        assert getattr(pl, name).__doc__


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Trainer"):
        pl.Trainer  # noqa: B018 - the access is the test


def test_errors_have_the_codes_and_statuses_of_the_document() -> None:
    assert [row[:3] for row in table("Errors")] == [[e.__name__, e.code, str(e.http_status)] for e in all_errors()]


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("Fields of a `TrainSpec`", pl.TrainSpec),
        ("Fields of a `ScriptSpec`", pl.ScriptSpec),
        ("Fields of `Resources`", pl.Resources),
        ("Settings of a master", MasterSettings),
    ],
)
def test_fields_and_their_defaults_are_those_of_the_document(heading: str, model: type[BaseModel]) -> None:
    documented = {row[0]: row[1] for row in table(heading)}
    defaults = {
        name: "required" if field.is_required() else repr(field.default) for name, field in model.model_fields.items()
    }
    if "resources" in defaults:
        defaults["resources"] = "Resources()"  # its repr lists the fields, which have a table of their own
    assert documented == defaults


def test_the_fields_of_a_spec_are_the_contract() -> None:
    assert set(pl.TrainSpec.model_fields) == set(
        [
            "model",
            "train_data",
            "val_data",
            "loss",
            "training_step",
            "optimizer",
            "lr_schedule",
            "clip_grad_norm",
            "batch_size",
            "microbatches",
            "threads",
            "drop_last",
            "metrics",
            "stop",
            "keep",
            "eval_every",
            "checkpoint_every",
            "resources",
            "sync",
            "reproducible",
            "seed",
            "precision",
            "augment",
            "collate",
            "priority",
            "deadline",
            "name",
        ]
    )


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after this code."""
    heavy = ("torch", "ray", "fastapi", "sqlalchemy", "pandas", "numpy")
    script = f"import sys\n{code}\nprint(*[name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import paceline as pl",
        "import paceline as pl; pl.MaxEpochs(3) | pl.Metric('val_loss', at_most=1) | pl.Patience('val_loss', 2) & pl.MaxTime('1m')",
        "import paceline as pl; pl.InvalidSpec('a', 'b'); pl.Plan",
    ],
)
def test_importing_paceline_and_making_conditions_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import paceline.client.client",
        "import paceline as pl; pl.Client, pl.Job, pl.Result, pl.TrainSpec",
        "import paceline.cli.app",
    ],
)
def test_the_client_loads_neither_torch_nor_ray_nor_the_master(code: str) -> None:
    assert loaded_after(code) <= {"numpy"}


def test_the_check_for_heavy_packages_would_see_one() -> None:
    assert "numpy" in loaded_after("import numpy")
