def at_fault(rank: int) -> bool:
    return rank == 1
