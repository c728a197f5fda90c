"""Phases of pruning and retraining: equal to loops of torch, resumed exactly, of one mask."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import gossamer
from gossamer import ArgumentError, CheckpointError, PatternError, RecipeError, StructureError
from gossamer.optim import AveragedModel, PruneRetrain

EXCLUDE = "3"
X = torch.randn(48, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model_of(normalised: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(32) if normalised else nn.Identity()
    return nn.Sequential(nn.Linear(16, 32), middle, nn.Tanh(), nn.Linear(32, 16)).double()


def train(model: nn.Module, seed: int, after: Callable[[], object] = lambda: None) -> nn.Module:
    """Six steps, whose order of batches depends on the seed."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    for batch in order.split(8):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X[batch]), X[batch]).backward()
        optimizer.step()
        after()
    return model


def swa(model: nn.Module, seed: int, after: Callable[[], object] = lambda: None) -> nn.Module:
    """The same; the average over its last three steps."""
    average, step = AveragedModel(model), iter(range(6))

    def watch() -> None:
        after()
        if next(step) >= 3:
            average.update_parameters(model)

    train(model, seed, watch)
    return average.module


def largest(weight: Tensor, phase: int, pattern: str) -> Tensor:
    """The mask of a phase of two, by hand."""
    if pattern == "2:4":
        kept = (3, 2, 2)[phase - 1]
        order = weight.abs().view(-1, 4).argsort(1, descending=True)
        return (
            torch.zeros(len(order), 4, dtype=torch.bool)
            .scatter_(1, order[:, :kept], True)
            .view_as(weight)
        )
    kept = round(weight.numel() * 0.25 ** (phase / 2))
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort(descending=True)[:kept]] = True
    return mask.view_as(weight)


def oracle(pattern: str, rewind: bool, learn: Callable[..., nn.Module]) -> list[dict[str, Tensor]]:
    """The averages of all phases: dense weights of torch, multiplied by a mask after each step."""
    given = model_of()
    start, mask, means = given, torch.ones(32, 16, dtype=torch.bool), []
    for phase in range(3):
        trained = []
        for seed in range(3):
            model = copy.deepcopy(start)
            model[0].weight.data *= mask
            model[0].weight.register_hook(lambda gradient, mask=mask: gradient * mask)
            trained.append(learn(model, 10 * phase + seed).state_dict())
        mean = {name: sum(one[name] for one in trained) / 3 for name in trained[0]}
        means.append(mean)
        mask = largest(mean["0.weight"], phase + 1, pattern)
        start = copy.deepcopy(given)
        if not rewind:
            start.load_state_dict(mean)
    return means


@pytest.mark.parametrize("pattern", ["75%", "2:4"])
@pytest.mark.parametrize(("rewind", "learn"), [(False, train), (True, swa)], ids=["SMS", "SWAMP"])
def test_equals_loops_of_torch(pattern: str, rewind: bool, learn: Callable[..., nn.Module]) -> None:
    phases = PruneRetrain(model_of(), pattern, rounds=2, rewind=rewind, exclude=EXCLUDE)
    for number, expected in enumerate(oracle(pattern, rewind, learn)):
        copies = phases.copies(3)
        mean = phases.close([learn(one, 10 * number + k) for k, one in enumerate(copies)])
        if number:
            kept = phases.pattern_of(number).count(32, 16)
            assert mean[0].weight.nnz == kept == copies[0][0].weight.nnz
            assert torch.equal(mean[0].mask(), expected["0.weight"] != 0)
        for name, value in gossamer.densify(mean).state_dict().items():
            torch.testing.assert_close(value, expected[name])
    assert phases.is_over


@pytest.mark.parametrize("rewind", [False, True])
def test_a_resumed_run_is_bit_equal(rewind: bool) -> None:
    def go(phases: PruneRetrain, parts: int) -> list[nn.Module]:
        return [
            phases.close([train(one, seed) for seed, one in enumerate(phases.copies(2))])
            for _ in range(parts)
        ]

    whole = go(PruneRetrain(model_of(), "75%", 2, rewind), 3)
    for cut in (0, 1, 2, 3):
        first = PruneRetrain(model_of(), "75%", 2, rewind)
        go(first, cut)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        again = PruneRetrain(model_of(seed=5), "75%", 2, rewind)
        again.load_state_dict(torch.load(file))
        assert (again.phase, again.is_over) == (cut, cut == 3)
        for got, expected in zip(go(again, 3 - cut), whole[cut:], strict=True):
            for name, value in expected.state_dict().items():
                assert torch.equal(got.state_dict()[name], value), name


def test_statistics_of_normalisation_are_estimated_anew() -> None:
    phases = PruneRetrain(model_of(normalised=True), rounds=1, exclude=EXCLUDE)
    trained = [train(one, seed) for seed, one in enumerate(phases.copies(2))]
    with pytest.raises(ArgumentError, match="'1' has the statistics of one"):
        phases.close(trained)
    assert phases.phase == 0
    mean = phases.close(trained, lambda model: update_bn([X], model))
    inside = nn.functional.linear(X, mean[0].weight, mean[0].bias)
    torch.testing.assert_close(mean[1].running_mean, inside.mean(0))
    torch.testing.assert_close(phases.copies()[0][1].running_mean, inside.mean(0))
    phases.close(phases.copies(1))  # of one model the statistics are its own


def test_every_kind_of_weight_goes_back_with_the_mask_of_the_average() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Conv2d(4, 8, 3), nn.LSTM(8, 8), nn.Linear(8, 8)])
    phases = PruneRetrain(model, "50%", 1, rewind=True, distribution="erk")
    (trained,) = phases.copies()
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    mean = phases.close([trained])
    (start,) = phases.copies()
    pruned = gossamer.sparsify(copy.deepcopy(mean), "50%", distribution="erk")
    shown = [gossamer.densify(one).state_dict() for one in (start, pruned)]
    for name, value in model.state_dict().items():
        mask = shown[1][name] != 0
        assert torch.equal(shown[0][name], value * mask), name


def closed() -> PruneRetrain:
    phases = PruneRetrain(model_of(), "50%", rounds=1)
    for _ in range(2):
        phases.close(phases.copies())
    return phases


def second() -> PruneRetrain:
    phases = PruneRetrain(model_of(), "75%", rounds=1, exclude=EXCLUDE)
    phases.close(phases.copies())
    return phases


def moved(count: int) -> list[nn.Module]:
    """Models of this phase, the last few with another mask."""
    models = second().copies(2)
    for model in models[2 - count :]:
        model[0].weight.set_mask(model[0].mask().roll(1, 0))
    return models


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: second().close(moved(1)), StructureError, "masks of layer '0' differ"),
        (lambda: second().close(moved(2)), StructureError, "masks of layer '0' differ"),
        (lambda: second().close([model_of()]), ArgumentError, "one architecture"),
        (lambda: second().close([]), ArgumentError, "at least one"),
        (lambda: closed().copies(), RecipeError, "all 2 phases"),
        (lambda: closed().close([]), RecipeError, "all 2 phases"),
        (lambda: PruneRetrain(model_of(), rounds=0), ArgumentError, "at least 1"),
        (lambda: PruneRetrain(model_of(), "nonzeros"), PatternError, "90%"),
        (lambda: PruneRetrain(model_of(), "75"), PatternError, "75"),
        (lambda: second().load_state_dict({}), CheckpointError, "state_dict"),
        (lambda: second().load_state_dict(closed().state_dict()), CheckpointError, "arguments"),
    ],
)
def test_what_does_not_fit_is_refused(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()
