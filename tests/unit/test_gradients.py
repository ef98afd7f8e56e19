"""Gradients: accumulated over cells, packed flat, summed over workers; the bits do not depend on the shares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import InvalidSpec
from paceline.messages.to_worker import Group
from paceline.planner.exchange import exchange
from paceline.planner.network import Network
from paceline.shares import num_nodes, split_evenly
from paceline.training.exchange import GradientExchange, buckets
from paceline.training.gradients import CellAccumulator, FlatLayout, Gradients, add_gradients
from paceline.training.group import WorkerGroup
from paceline.training.monitor import Monitor
from paceline.training.worker import _interface

from builders import node

CPU = torch.device("cpu")


def parameters() -> list[torch.nn.Parameter]:
    """Of several sizes, dtypes and memory layouts; the third and the last get no gradient in some cells."""
    shapes = [(3, 5), (7,), (2, 3), (4, 3, 2, 2), ()]
    made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    made[3] = torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    return [*made, torch.nn.Parameter(torch.randn(6, 2).t()), torch.nn.Parameter(torch.randn(5, dtype=torch.float64))]


def cell_gradients(owners: Sequence[torch.nn.Parameter], cell: int) -> Gradients:
    """The gradients of one cell, in each parameter's layout; every third cell leaves some out."""
    generator = torch.Generator().manual_seed(cell)
    absent = {2, 6} if cell % 3 == 0 else set()
    return [
        None if i in absent else torch.empty_like(p).normal_(generator=generator).mul_(10.0 ** (cell % 5))
        for i, p in enumerate(owners)
    ]


def backward(owners: Sequence[torch.nn.Parameter], cell: int) -> None:
    """What a backward pass does: add to `.grad`, or set it."""
    for parameter, gradient in zip(owners, cell_gradients(owners, cell), strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def accumulated(owners: Sequence[torch.nn.Parameter], share: tuple[int, int], num_cells: int) -> CellAccumulator:
    accumulator = CellAccumulator(owners, share, num_cells)
    for cell in range(*share):
        backward(owners, cell)
        accumulator.cell_done(cell)
    return accumulator


def by_hand(owners: Sequence[torch.nn.Parameter], first: int, size: int, num_cells: int) -> Gradients:
    """The sum of the tree node that starts at `first`, by the definition of the tree."""
    if size == 1:
        return cell_gradients(owners, first)
    left = by_hand(owners, first, size // 2, num_cells)
    if first + size // 2 >= num_cells:
        return left
    return add_gradients(left, by_hand(owners, first + size // 2, size // 2, num_cells))


def of_dtype(owners: Sequence[torch.nn.Parameter], dtype: torch.dtype) -> list[int]:
    return [i for i, owner in enumerate(owners) if owner.dtype == dtype]


def equal_bits(a: Gradients, b: Gradients) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all((x is None) == (y is None) for x, y in pairs) and all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs if x is not None and y is not None
    )


def real_backward(owners: Sequence[torch.nn.Parameter], cell: int) -> None:
    """The same gradients from autograd, whose hooks the exchange listens to; the last parameters' come first."""
    pairs = zip(owners, cell_gradients(owners, cell), strict=True)
    terms = [(owner * gradient).sum().double() for owner, gradient in pairs if gradient is not None]
    sum(terms, torch.zeros((), dtype=torch.float64)).backward()


def whole_sum(
    shares: list[tuple[int, int]],
    num_cells: int,
    steps: int = 1,
    make: Callable[[], list[torch.nn.Parameter]] = parameters,
    seen: Callable[[WorkerGroup], None] = lambda _: None,
) -> list[Gradients]:
    """What every member gets in the last of `steps`, with real collectives between threads of this process."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = tuple(3 * place + 1 for place in range(len(shares)))  # a rank is a name, not a place
    group = Group(key="test", host="127.0.0.1", port=store.port, members=ranks, shares=tuple(shares))

    def work(place: int) -> Gradients:
        owners = make()
        workers = WorkerGroup(group, ranks[place], CPU, Monitor(), threading.Event())
        seen(workers)
        exchange = GradientExchange(owners, workers)
        for _ in range(steps):
            exchange.begin(shares, num_cells)
            for cell in range(*shares[place]):
                if cell == shares[place][1] - 1:
                    exchange.last_cell(cell)
                real_backward(owners, cell)
                exchange.cell_done(cell)
            exchange.send_rest()
            total = exchange.total()
        exchange.close()
        return [None if gradient is None else gradient.clone() for gradient in total]

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(work, range(len(shares)), timeout=60))


@pytest.fixture(autouse=True)
def _on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", _interface("127.0.0.1"))


def test_adding_takes_the_other_gradient_where_one_is_missing() -> None:
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    total = add_gradients([one.clone(), None, two, None], [two, one, None, None])
    assert [None if g is None else g.item() for g in total] == [3.0, 1.0, 2.0, None]


@given(st.integers(1, 20))
@settings(max_examples=20)
def test_one_worker_sums_its_cells_along_the_tree_and_leaves_no_gradient_behind(num_cells: int) -> None:
    torch.manual_seed(0)
    owners = parameters()
    (total,) = accumulated(owners, (0, num_cells), num_cells).partials().values()
    size = 1 << (num_cells - 1).bit_length()
    assert equal_bits(total, by_hand(owners, 0, size, num_cells))
    assert all(parameter.grad is None for parameter in owners)


def test_the_order_of_the_sum_matters_so_that_equal_bits_mean_something() -> None:
    owners = parameters()
    (tree,) = accumulated(owners, (0, 9), 9).partials().values()
    in_a_row = cell_gradients(owners, 0)
    for cell in range(1, 9):
        in_a_row = add_gradients(in_a_row, cell_gradients(owners, cell))
    assert not equal_bits(tree, in_a_row)


@pytest.mark.parametrize("shares", [split_evenly(9, 2), split_evenly(9, 3), [(0, 1), (1, 8), (8, 9)], [(0, 9), (9, 9)]])
def test_every_worker_gets_the_bits_that_a_lone_one_computes(shares: list[tuple[int, int]]) -> None:
    (alone,) = whole_sum([(0, 9)], 9)
    assert len(alone) == 7
    for steps in (1, 3):  # from the second step on, gradients leave while backward still runs
        together = whole_sum(shares, 9, steps)
        assert all(equal_bits(total, alone) for total in together)


def test_a_parameter_that_no_cell_gave_a_gradient_has_none_in_the_sum() -> None:
    totals = whole_sum([(0, 1), (1, 1)], 1)
    assert [[g is None for g in total] for total in totals] == [[False, False, True, False, False, False, True]] * 2


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_layout_gives_back_what_was_packed(world: int, dtype: torch.dtype) -> None:
    owners = parameters()
    layout = FlatLayout(owners, of_dtype(owners, dtype), world)
    gradients = cell_gradients(owners, 0)
    rows = torch.zeros(3, layout.length, dtype=dtype)
    layout.pack([gradients[i] for i in layout.indices], rows[1])
    found: Gradients = [None] * len(owners)
    layout.unpack(rows[1], owners, found)
    mine = [g if p.dtype == dtype else None for g, p in zip(gradients, owners, strict=True)]
    assert equal_bits(found, mine)
    assert rows[0].abs().sum() == rows[2].abs().sum() == 0


def test_gradients_come_back_in_their_parameters_own_memory_layout() -> None:
    owners = parameters()
    layout = FlatLayout(owners, of_dtype(owners, torch.float32), 2)
    out, found = torch.zeros(layout.length), [None] * len(owners)  # type: tuple[torch.Tensor, Gradients]
    layout.pack([cell_gradients(owners, 1)[i] for i in layout.indices], out)
    layout.unpack(out, owners, found)
    assert found[3] is not None
    assert found[3].is_contiguous(memory_format=torch.channels_last)
    assert [g.stride() for g in found if g is not None] == [p.stride() for p in owners if p.dtype == torch.float32]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parameters_lie_apart_aligned_and_every_rank_gets_an_equal_aligned_slice(world: int) -> None:
    owners = parameters()
    layout = FlatLayout(owners, of_dtype(owners, torch.float32), world)
    sizes = [owners[i].numel() for i in layout.indices]
    ends = [at + size for at, size in zip(layout.offsets, sizes, strict=True)]
    assert all(end <= at for end, at in zip(ends, [*layout.offsets[1:], layout.flags], strict=True))
    assert all(at * 4 % 64 == 0 for at in [*layout.offsets, layout.length // world])
    assert layout.length % world == 0
    assert layout.flags + len(sizes) <= layout.length


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_flags_survive_a_sum_over_many_workers(dtype: torch.dtype) -> None:
    owner = [torch.nn.Parameter(torch.zeros(3, dtype=dtype))]
    layout = FlatLayout(owner, [0], 1)
    total = torch.zeros(layout.length, dtype=dtype)
    for _ in range(300):  # more than bfloat16 can count
        row = torch.zeros_like(total)
        layout.pack([torch.zeros(3, dtype=dtype)], row)
        total += row
    found: Gradients = [None]
    layout.unpack(total, owner, found)
    assert found[0] is not None


def test_buckets_hold_every_parameter_once_last_ones_first_and_close_when_full() -> None:
    owners = [torch.nn.Parameter(torch.zeros(200_000)) for _ in range(4)]
    owners[1] = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    assert list(buckets(owners)) == [[3, 2], [1], [0]]
    assert list(buckets([torch.nn.Parameter(torch.zeros(1)) for _ in range(3)])) == [[2, 1, 0]]


def in_two_workers(backwards: Sequence[Callable[[torch.nn.Parameter], torch.Tensor]]) -> list[float]:
    """Two workers of one cell each; one step for each backward. The last step's gradients, or what it raises."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shares = [(0, 1), (1, 2)]
    group = Group(key="test", host="127.0.0.1", port=store.port, members=(0, 1), shares=tuple(shares))

    def work(place: int) -> float:
        owner = torch.nn.Parameter(torch.ones(3))
        exchange = GradientExchange([owner], WorkerGroup(group, place, CPU, Monitor(), threading.Event()))
        for backward in backwards:
            exchange.begin(shares, 2)
            exchange.last_cell(place)
            backward(owner).backward()
            exchange.cell_done(place)
            exchange.send_rest()
            (gradient,) = exchange.total()
        assert gradient is not None
        return float(gradient.sum())

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2), timeout=60))


def whole(owner: torch.nn.Parameter) -> torch.Tensor:
    return owner.sum()


class InPieces(torch.autograd.Function):
    """What reentrant checkpointing does: a backward within backward."""

    @staticmethod
    def forward(ctx: Any, owner: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
        ctx.owner = owner
        return through.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        with torch.enable_grad():
            ctx.owner.sum().backward()
        return None, gradient


def pieces(owner: torch.nn.Parameter) -> torch.Tensor:
    return InPieces.apply(owner, InPieces.apply(owner, owner.sum()))


def test_gradients_that_come_in_pieces_wait_for_the_end_of_backward() -> None:
    assert in_two_workers([pieces, pieces]) == [18.0, 18.0]


def test_a_gradient_that_comes_in_pieces_only_later_is_refused_rather_than_summed_wrongly() -> None:
    with pytest.raises(InvalidSpec, match="came in pieces"):
        in_two_workers([whole, pieces])


class Counted:
    """A process group, and the bytes that its collectives send to the others."""

    def __init__(self, peers: Any, world: int) -> None:
        self._peers, self._world, self.bytes = peers, world, 0

    def alltoall_base(self, into: torch.Tensor, out: torch.Tensor, *sizes: list[int]) -> Any:
        self.bytes += out.nbytes * (self._world - 1) // self._world
        return self._peers.alltoall_base(into, out, *sizes)

    def _allgather_base(self, into: torch.Tensor, mine: torch.Tensor) -> Any:
        self.bytes += mine.nbytes * (self._world - 1)
        return self._peers._allgather_base(into, mine)


@pytest.mark.parametrize("workers", [2, 3, 5, 8])
def test_the_exchange_sends_the_bytes_that_a_plan_predicts(workers: int) -> None:
    counts: dict[int, Counted] = {}

    def count(group: WorkerGroup) -> None:
        group.peers = counts[group.place] = Counted(group.peers, group.world)

    def large() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.zeros(size)) for size in (300_000, 100_000)]

    shares = split_evenly(8, workers)
    whole_sum(shares, 8, make=large, seen=count)
    hosts, sums = [node("a", cores=8)] * workers, [num_nodes(share, 8) for share in shares]
    predicted = exchange(hosts, sums, 4 * 400_000, 1, Network(), {}).sent
    assert [counts[place].bytes for place in range(workers)] == pytest.approx(predicted, rel=0.001)
