"""The stand-in for torch._dynamo, in a fresh interpreter: what it saves, and when it gives way."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STEP = """
import sys, torch
from paceline.training import dynamo
from paceline.training.seeds import make_deterministic
dynamo.defer()
make_deterministic(threads=1, reproducible=True)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
optimizer.zero_grad()
"""
NOTHING = "print([name for name in ('sympy', 'torch._inductor', 'torch._dynamo.config') if name in sys.modules])"
COMPILED = """
calls = []
def backend(graph, inputs):
    calls.append(graph)
    return graph.forward
print(torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(2)).tolist(), len(calls))
optimizer.step()
"""
A_PART = "import torch._dynamo.config as part; print(part.__name__, torch._dynamo is sys.modules['torch._dynamo'])"
LATER = "torch._dynamo.reset(); print(torch._inductor.config.deterministic)"
FORKS = """
import json, os, traceback
for code in json.loads(sys.argv[1]):
    if os.fork() == 0:
        try:
            exec(code, globals())
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    print("----", flush=True)
"""


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What each of these codes prints after a step, in a process of its own; the step is done but once."""
    codes = [NOTHING, COMPILED, A_PART, LATER]
    command = [sys.executable, "-c", STEP + FORKS, json.dumps(codes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(zip(codes, (text.strip() for text in done.stdout.split("----")), strict=False))


def test_a_step_loads_no_compiler(printed: dict[str, str]) -> None:
    assert printed[NOTHING] == "[]"


def test_compiled_code_still_runs_and_later_steps_too(printed: dict[str, str]) -> None:
    assert printed[COMPILED] == "[3.0, 3.0] 1"


def test_an_import_of_a_part_takes_the_real_module(printed: dict[str, str]) -> None:
    assert printed[A_PART] == "torch._dynamo.config True"


def test_a_compiler_that_comes_later_is_told_of_determinism(printed: dict[str, str]) -> None:
    assert printed[LATER] == "True"
