"""The environment that `torchrun` gives to each rank: which rank it is, and where the ranks meet. Pure functions.

As of torch/distributed/elastic/agent/server/local_elastic_agent.py: a rank joins the store that its launcher serves.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.plan import Placement


def environment(
    placements: Sequence[Placement], rank: int, store: tuple[str, int], run_id: str, restarts: tuple[int, int]
) -> dict[str, str]:
    """Of one rank. placements: of all, by rank, those of a node in a row. restarts: (so far, at most)."""
    nodes = list(dict.fromkeys(placement.node_id for placement in placements))
    node = placements[rank].node_id
    local = [placement for placement in placements if placement.node_id == node]
    world = str(len(placements))
    found = {
        "RANK": str(rank),
        "WORLD_SIZE": world,
        "LOCAL_RANK": str(next(at for at, placement in enumerate(local) if placement.rank == rank)),
        "LOCAL_WORLD_SIZE": str(len(local)),
        "GROUP_RANK": str(nodes.index(node)),
        "GROUP_WORLD_SIZE": str(len(nodes)),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": world,
        "ROLE_NAME": "default",
        "MASTER_ADDR": store[0],
        "MASTER_PORT": str(store[1]),
        "TORCHELASTIC_RESTART_COUNT": str(restarts[0]),
        "TORCHELASTIC_MAX_RESTARTS": str(restarts[1]),
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    devices = [placement.device.removeprefix("cuda:") for placement in local if placement.device.startswith("cuda:")]
    return found | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})
