"""One rank waits for what never comes, and the others for it; once it is restarted, all goes well."""

import json
import os
import threading

import torch
import torch.distributed as dist


def wait_for_what_never_comes() -> None:
    threading.Event().wait()


def main() -> None:
    dist.init_process_group("gloo")
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if restarts == "0" and os.environ["RANK"] == "1":
        wait_for_what_never_comes()
    dist.all_reduce(torch.ones(1))
    if os.environ["RANK"] == "0":
        os.makedirs("outputs", exist_ok=True)
        with open("outputs/result.json", "w") as file:
            json.dump({"restarts": restarts}, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
