"""Saves when it is asked to end, which takes a moment, as a large model's checkpoint does."""

import os
import signal
import sys
import time
from types import FrameType

RANK = os.environ["RANK"]


def save(_number: int, _frame: FrameType | None) -> None:
    time.sleep(1.0)
    os.makedirs("outputs", exist_ok=True)
    with open(f"outputs/saved-{RANK}", "w") as file:
        file.write(os.environ["TORCHELASTIC_RESTART_COUNT"])
    print("rank", RANK, "has saved")
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
print("rank", RANK, "can be asked")
if os.environ.get("FAILS") == RANK:
    raise RuntimeError("out of luck")
while True:
    time.sleep(0.1)
