"""Values of a model that was built without memory, and models that can't be."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.training.sharded.materialise import materialise, skeleton


def filled(builder: object, seed: int = 0) -> nn.Module:
    model = skeleton(builder, seed)
    modules = dict(model.named_modules())
    materialise(modules, modules, seed, torch.device("cpu"))
    return model


def small() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


def test_values_depend_on_the_path_and_the_seed_alone() -> None:
    one, again, other = filled(small), filled(small), filled(small, seed=1)
    beside = filled(lambda: nn.ModuleList([nn.Linear(3, 3), small()]))
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(one.linear1.weight, other.linear1.weight)
    assert not torch.equal(one.linear1.weight, beside[1].linear1.weight)


def test_layers_are_initialised_as_they_initialise_themselves() -> None:
    model = filled(small)
    assert torch.equal(model.self_attn.out_proj.bias, torch.zeros(16))
    assert torch.equal(model.norm1.weight, torch.ones(16))
    bound = 1 / 16**0.5
    assert float(model.linear1.weight.detach().abs().max()) <= bound
    norm = filled(partial(nn.BatchNorm1d, 4))
    assert torch.equal(norm.running_var, torch.ones(4))


def test_tied_parameters_stay_tied_and_keep_their_first_owners_values() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(100, 16), "head": nn.Linear(16, 100, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    model = filled(tied)
    assert model["head"].weight is model["embed"].weight
    assert float(model["embed"].weight.detach().std()) > 0.9  # an embedding's, not a linear layer's


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.arange(4.0))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        nn.init.normal_(self.inner.weight, std=0.02)


@pytest.mark.parametrize(
    ("builder", "path"),
    [(lambda: nn.Sequential(Own()), r"0 \(Own\)"), (lambda: nn.Sequential(Table()), r"0 \(Table\)")],
)
def test_a_module_that_cannot_initialise_itself_is_refused_by_its_path(builder: object, path: str) -> None:
    with pytest.raises(pl.InvalidSpec, match=path):
        skeleton(builder, 0)


def test_values_that_another_module_gave_are_not_silently_lost() -> None:
    with pytest.raises(pl.InvalidSpec, match=r"0\.inner\.weight"):
        filled(lambda: nn.Sequential(Twice()))


class Gpt(nn.Module):
    """As Hugging Face's models and nanoGPT initialise what is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.001)
            nn.init.zeros_(module.bias)


def test_a_models_own_way_to_initialise_its_modules_is_followed() -> None:
    model = filled(lambda: nn.Sequential(Gpt()))
    assert float(model[0].first.weight.detach().std()) < 0.002
    assert torch.equal(model[0].first.bias, torch.zeros(64))
    assert torch.equal(model[0].norm.weight, torch.ones(64))


def test_a_module_that_was_handed_over_keeps_its_values() -> None:
    given = Twice()
    values = given.inner.weight.detach().clone()
    assert torch.equal(filled(given).inner.weight, values)
