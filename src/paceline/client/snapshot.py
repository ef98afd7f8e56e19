"""The project of a script, as one tar file: all files below its folder but those that git would ignore."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from paceline.archive import pack_folder
from paceline.errors import InvalidSpec

NEVER = (".git", "__pycache__", ".ipynb_checkpoints")
MOST_BYTES = 512 * 2**20
NAMED = 5
FOLDER = "ps_d"  # pathspec's name for the slash after what matched; a pattern that ends with "/**" has none


def snapshot(project: Path, archive: Path) -> None:
    """Write the project into a tar file. Raises InvalidSpec where there is none, or it is too large to be code."""
    if not project.is_dir():
        raise InvalidSpec(f"workdir={project} is no folder.", "Give the folder that the script is started in.")
    files = list(project_files(project))
    _check_size(project, files)
    pack_folder(project, archive, files)


def project_files(project: Path) -> Iterator[str]:
    """The paths, from `project`, of what git would not ignore, by the .gitignore files in it, above it and below it."""
    project = project.resolve()
    yield from _walk(project, project, _rules_above(project))


Rules = tuple[tuple[Path, GitIgnoreSpec], ...]


def _walk(folder: Path, project: Path, rules: Rules) -> Iterator[str]:
    rules = (*rules, *_rules_in(folder))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name in NEVER or _ignored(path, is_folder, rules):
            continue
        yield str(path.relative_to(project))
        if is_folder:
            yield from _walk(path, project, rules)


def _ignored(path: Path, is_folder: bool, rules: Rules) -> bool:
    """The .gitignore nearest to a path has the last word, and in it the last line that matches, as in git."""
    for where, spec in reversed(rules):
        name = f"{path.relative_to(where)}{'/' if is_folder else ''}"
        for pattern in reversed(list(spec.patterns)):
            if pattern.include is not None and _matches(pattern, name):
                return bool(pattern.include)
    return False


def _matches(pattern: Any, name: str) -> bool:
    """Whether it matches the path itself: "a/**" is not a, and what matches only a was asked of a, before its files."""
    match = pattern.regex.match(name)
    if match is None:
        return False
    if FOLDER not in pattern.regex.groupindex:
        return bool(match.end() < len(name))
    return bool(match[FOLDER] is None or match.end(FOLDER) == len(name))


def _rules_in(folder: Path) -> Rules:
    file = folder / ".gitignore"
    return ((folder, GitIgnoreSpec.from_lines(file.read_text().splitlines())),) if file.is_file() else ()


def _rules_above(project: Path) -> Rules:
    """Those between the repository's root and the project, where it lies inside one."""
    root = next((folder for folder in (project, *project.parents) if (folder / ".git").exists()), project)
    between = [folder for folder in project.parents if folder.is_relative_to(root)]
    return tuple(rule for folder in reversed(between) for rule in _rules_in(folder))


def _check_size(project: Path, files: list[str]) -> None:
    sizes = {name: (project / name).stat().st_size for name in files if (project / name).is_file()}
    total = sum(sizes.values())
    if total <= MOST_BYTES:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:NAMED]
    named = ", ".join(f"{name} ({sizes[name] / 2**20:,.0f} MiB)" for name in largest)
    raise InvalidSpec(
        f"the project {project} has {total / 2**20:,.0f} MiB in {len(sizes)} files; "
        f"{MOST_BYTES / 2**20:.0f} MiB may travel. The largest: {named}.",
        "Name what the script does not need in .gitignore; put data where the nodes can read it.",
    )
