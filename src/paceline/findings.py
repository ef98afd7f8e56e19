"""What pydantic finds wrong with a user's fields, as the error that they meet: the field, its value, what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from paceline.errors import InvalidSpec

SHOWN = 60  # characters of a value
OF_ANOTHER_KIND = ("dict_type", "mapping_type", "model_type", "model_attributes_type", "union_tag_not_found")
USUAL_REMEDY = "Fix the named fields; help() of the class lists them all."


def invalid_spec(
    invalid: ValidationError, fields: Iterable[str] = (), examples: Mapping[str, str] | None = None
) -> InvalidSpec:
    """fields: those that there are, for who misspelt one. examples: what to write, by field, where it does not tell."""
    found, examples = invalid.errors(include_url=False), examples or {}
    facts = [_fact(finding, examples) for finding in found]
    named = dict.fromkeys(str(finding["loc"][0]) for finding in found if finding["loc"])
    remedies = [_remedy(name, list(fields), examples) for name in named]
    return InvalidSpec("; ".join(facts) + ".", " ".join(filter(None, remedies)) or USUAL_REMEDY)


def _fact(finding: Any, examples: Mapping[str, str]) -> str:
    place = ".".join(map(str, finding["loc"]))
    told = finding["msg"].removeprefix("Value error, ")
    match finding["type"]:
        case "missing":
            return f"{place}= is missing"
        case "extra_forbidden":
            return f"there is no field {place}="
        case "value_error":
            return told if told.startswith(place) else f"{place}: {told}"
        case kind if kind in OF_ANOTHER_KIND and finding["loc"][0] in examples:
            return f"{place}={_shown(finding['input'])} is not what it takes"
    return f"{place}={_shown(finding['input'])}: {told[0].lower()}{told[1:]}"


def _shown(value: Any) -> str:
    plain = value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**63)
    return repr(value)[:SHOWN] if plain else f"<{type(value).__name__}>"


def _remedy(name: str, fields: list[str], examples: Mapping[str, str]) -> str:
    if name in examples:
        return f"Write {name}={examples[name]}."
    close = [] if name in fields else difflib.get_close_matches(name, fields, n=1, cutoff=0.75)
    return f"Did you mean {close[0]}=?" if close else ""
