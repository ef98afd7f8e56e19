"""Batch-norm on a grid: one running update a step, from the statistics of the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import paceline as pl
from paceline.training.batchnorm import BatchNormPool

CHANNELS = 3
SHAPES = {
    "1d": (24, CHANNELS),
    "1d sequence": (24, CHANNELS, 5),
    "2d": (24, CHANNELS, 4, 4),
    "3d": (24, CHANNELS, 2, 2, 2),
}
LAYERS = {
    "1d": torch.nn.BatchNorm1d, "1d sequence": torch.nn.BatchNorm1d, "2d": torch.nn.BatchNorm2d, "3d": torch.nn.BatchNorm3d,
}  # fmt: skip


def batch(step: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step)) * 3 + step + 1


def pooled_step(model: torch.nn.Module, pool: BatchNormPool, whole: torch.Tensor, cells: list[int]) -> None:
    """One step over a batch that is cut into cells of these sizes."""
    pool.begin_step()
    rows = []
    for cell in whole.split(cells):
        model(cell)
        rows.append(pool.take_row())
    pool.end_step(torch.stack(rows))


def statistics(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("kind", SHAPES)
def test_running_statistics_are_those_of_the_whole_batch_at_once(kind: str, momentum: float | None) -> None:
    torch.manual_seed(0)
    whole_model, cut_model = (LAYERS[kind](CHANNELS, momentum=momentum) for _ in range(2))
    pool = BatchNormPool(cut_model)
    for step in range(3):
        whole_model(batch(step, SHAPES[kind]))
        pooled_step(cut_model, pool, batch(step, SHAPES[kind]), [7, 7, 7, 3])
    expected, found = statistics(whole_model), statistics(cut_model)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    assert found["num_batches_tracked"] == expected["num_batches_tracked"] == 3
    assert cut_model.momentum == momentum


def test_the_statistics_do_not_depend_on_which_worker_computed_which_cell() -> None:
    """Rows travel; a worker that computed other cells makes the same update from them, to the bit."""
    whole = batch(1, (16, CHANNELS))
    models = [torch.nn.BatchNorm1d(CHANNELS) for _ in range(2)]
    pools = [BatchNormPool(model) for model in models]
    rows: list[torch.Tensor] = []
    for (model, pool), part in zip(zip(models, pools, strict=True), whole.split([12, 4]), strict=True):
        pool.begin_step()
        for cell in part.split(4):
            model(cell)
            rows.append(pool.take_row())
        pool.end_step(None)
    for pool in pools:
        pool.end_step(torch.stack(rows))
    alone = torch.nn.BatchNorm1d(CHANNELS)
    pooled_step(alone, BatchNormPool(alone), whole, [4, 4, 4, 4])
    for name, value in statistics(alone).items():
        assert all(torch.equal(statistics(model)[name], value) for model in models)


def test_each_cell_is_normalised_by_itself() -> None:
    model = torch.nn.BatchNorm1d(CHANNELS, affine=False)
    pool = BatchNormPool(model)
    pool.begin_step()
    out = model(batch(0, (8, CHANNELS)))
    torch.testing.assert_close(out.mean(0), torch.zeros(CHANNELS), atol=1e-6, rtol=0)


def test_a_step_that_fails_leaves_the_statistics_as_they_were() -> None:
    model = torch.nn.BatchNorm1d(CHANNELS, momentum=0.3)
    pool = BatchNormPool(model)
    pooled_step(model, pool, batch(0, (8, CHANNELS)), [4, 4])
    before = statistics(model)
    pool.begin_step()
    model(batch(9, (4, CHANNELS)))
    pool.end_step(None)
    assert model.momentum == 0.3
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
    whole = torch.nn.BatchNorm1d(CHANNELS, momentum=0.3)
    whole.load_state_dict(before, strict=False)
    whole(batch(1, (8, CHANNELS)))
    pooled_step(model, pool, batch(1, (8, CHANNELS)), [4, 4])
    torch.testing.assert_close(model.running_mean, whole.running_mean)  # nothing of the failed step is left


def test_the_buffers_stay_the_very_tensors_that_they_were() -> None:
    """A checkpoint is loaded into them, and the optimizer's view of the model must not drift."""
    model = torch.nn.BatchNorm1d(CHANNELS)
    pool = BatchNormPool(model)
    before = [id(buffer) for buffer in model.buffers()]
    pooled_step(model, pool, batch(0, (8, CHANNELS)), [4, 4])
    assert [id(buffer) for buffer in model.buffers()] == before


def test_a_layer_that_is_called_twice_in_a_cell_pools_both_calls() -> None:
    layer = torch.nn.BatchNorm1d(CHANNELS)
    first, second = batch(0, (8, CHANNELS)), batch(1, (8, CHANNELS))
    pool = BatchNormPool(layer)
    pool.begin_step()
    layer(first)
    layer(second)
    pool.end_step(pool.take_row()[None])
    both = torch.nn.BatchNorm1d(CHANNELS)
    both(torch.cat([first, second]))
    torch.testing.assert_close(layer.running_mean, both.running_mean)
    torch.testing.assert_close(layer.running_var, both.running_var)


def test_layers_that_are_frozen_or_skipped_keep_their_statistics() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.BatchNorm1d(CHANNELS), "skipped": torch.nn.BatchNorm1d(CHANNELS)})
    model["frozen"] = torch.nn.BatchNorm1d(CHANNELS).eval()
    model["stateless"] = torch.nn.BatchNorm1d(CHANNELS, track_running_stats=False)
    pool = BatchNormPool(model)
    pool.begin_step()
    for name in ("used", "frozen", "stateless"):
        model[name](batch(0, (8, CHANNELS)))
    pool.end_step(pool.take_row()[None])
    assert [int(model[name].num_batches_tracked) for name in ("used", "skipped", "frozen")] == [1, 0, 0]
    assert torch.equal(model["frozen"].running_mean, torch.zeros(CHANNELS))
    assert torch.equal(model["skipped"].running_var, torch.ones(CHANNELS))


def test_a_model_without_batch_norm_has_empty_rows() -> None:
    pool = BatchNormPool(torch.nn.Linear(2, 2))
    pool.begin_step()
    assert pool.width == 0
    assert pool.take_row().shape == (0,)
    pool.end_step(torch.zeros(4, 0))


class Counting(torch.nn.Module):
    """Changes its buffer in forward, in the way it is told to."""

    def __init__(self, change: Callable[[Counting], None]) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self._change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._change(self)
        return x


def _in_place(model: Counting) -> None:
    model.calls += 1


def _replaced(model: Counting) -> None:
    model.calls = model.calls + 1


@pytest.mark.parametrize("change", [_in_place, _replaced])
def test_another_buffer_that_forward_changes_is_refused_by_name(change: Callable[[Counting], None]) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(CHANNELS), Counting(change))
    pool = BatchNormPool(model)
    pooled_step(model, pool, batch(0, (8, CHANNELS)), [4, 4])
    with pytest.raises(pl.InvalidSpec, match=r"'1\.calls'") as caught:
        pool.refuse_other_updates()
    assert caught.value.remedy


def _made_again(model: Counting) -> None:
    model.calls = torch.zeros(1)


@pytest.mark.parametrize("change", [lambda model: model.calls.sum(), _made_again])
def test_buffers_that_keep_their_values_are_no_reason_to_refuse(change: Callable[[Counting], None]) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(CHANNELS), Counting(change))
    pool = BatchNormPool(model)
    pooled_step(model, pool, batch(0, (8, CHANNELS)), [4, 4])
    pool.refuse_other_updates()


def test_sync_batch_norm_is_refused_by_name() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.SyncBatchNorm(2))
    with pytest.raises(pl.InvalidSpec, match="1 is a SyncBatchNorm") as caught:
        BatchNormPool(model)
    assert "BatchNorm" in caught.value.remedy
