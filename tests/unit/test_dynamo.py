"""The stand-in for torch._dynamo, in fresh interpreters: what it saves, and when it gives way."""

from __future__ import annotations

import subprocess
import sys

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


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", STEP + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_step_loads_no_compiler() -> None:
    assert (
        run("print([name for name in ('sympy', 'torch._inductor', 'torch._dynamo.config') if name in sys.modules])")
        == "[]"
    )


def test_compiled_code_still_runs_and_later_steps_too() -> None:
    code = """
calls = []
def backend(graph, inputs):
    calls.append(graph)
    return graph.forward
print(torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(2)).tolist(), len(calls))
optimizer.step()
"""
    assert run(code) == "[3.0, 3.0] 1"


def test_an_import_of_a_part_takes_the_real_module() -> None:
    assert run(
        "import torch._dynamo.config as part; print(part.__name__, torch._dynamo is sys.modules['torch._dynamo'])"
    ) == ("torch._dynamo.config True")


def test_a_compiler_that_comes_later_is_told_of_determinism() -> None:
    assert run("torch._dynamo.reset(); print(torch._inductor.config.deterministic)") == "True"
