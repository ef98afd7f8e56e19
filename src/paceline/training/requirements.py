"""A script's requirements: an environment on top of the node's own, made once a node for each text."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

from paceline.errors import InvalidSpec

TOLD_LINES = 5


def python_with(requirements: str, folder: Path) -> str:
    """A Python that has them, and all that this one has. folder: of the node's environments.

    What this one has already in the right version is not installed again. Raises InvalidSpec with pip's last words.
    """
    if not requirements.strip():
        return sys.executable
    name = hashlib.sha256(f"{sys.version}\n{sys.prefix}\n{requirements}".encode()).hexdigest()[:32]
    environment, whole = folder / name, folder / f"{name}.whole"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers of the node wait for the first
        if not whole.exists():
            shutil.rmtree(environment, ignore_errors=True)
            _make(environment)
            _install(requirements, environment)
            whole.touch()
    return str(_python(environment))


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _make(environment: Path) -> None:
    venv.EnvBuilder(symlinks=True).create(environment)
    packages = next((environment / "lib").glob("python*/site-packages"))
    # as site folders, behind the environment's own: editable installations of the node count too
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "_node.pth").write_text("\n".join(lines) + "\n")


def _install(requirements: str, environment: Path) -> None:
    file = environment / "requirements.txt"
    file.write_text(requirements)
    pip = [sys.executable, "-m", "pip", "--python", str(_python(environment)), "--no-input"]
    done = subprocess.run(  # noqa: S603 - what the user asked for, in a worker
        [*pip, "--disable-pip-version-check", "install", "-r", str(file)], capture_output=True, text=True
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)  # noqa: T201 - into the job's log
    if done.returncode:
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-TOLD_LINES:]
        raise InvalidSpec(
            f"pip could not install the requirements on this node: {' / '.join(last)}",
            "Correct the requirements, or install them on the nodes beforehand.",
        )
