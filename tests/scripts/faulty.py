"""One rank raises while the others wait for it in a collective; with a module of its own project."""

import os

import torch
import torch.distributed as dist
from parts.blame import at_fault


def main() -> None:
    dist.init_process_group("gloo")
    print("rank", os.environ["RANK"], "restart", os.environ["TORCHELASTIC_RESTART_COUNT"])
    if at_fault(int(os.environ["RANK"])):
        raise KeyError("the script is at fault")
    dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    main()
