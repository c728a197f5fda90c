"""Balancing Act: equal to its steps by hand, begins behind the pruning, resumes exactly."""

import io
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer
from gossamer import ArgumentError, DTypeError, ShapeError, recipes
from gossamer.recipes import DisparateImpact, GroupAccuracy, group_accuracy

GROUPS, CLASSES = 5, 3
DENSE = GroupAccuracy(
    torch.tensor([1.0, 0.9, 0.8, 0.95, 1.0]).double(), torch.tensor([40, 30, 20, 10, 5])
)


def batch(seed: int, size: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Group 4 is rare; a batch may hold more of a group than the memory."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 16, generator=random)
    groups = torch.multinomial(torch.tensor([5.0, 4, 3, 2, 0.2]), size, True, generator=random)
    return x, torch.randint(CLASSES, (size,), generator=random), groups


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return gossamer.sparsify(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3)), "75%")


def steps(model: nn.Module, fair: DisparateImpact, which: range) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = []
    for seed in which:
        x, y, groups = batch(seed)
        optimizer.zero_grad()
        loss = fair(model(x), y, groups)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def oracle(model: nn.Module, count: int, memory: int, rate: float) -> tuple[list[float], Tensor]:
    """Algorithm CEAG, sample by sample."""
    multipliers = [0.0] * GROUPS
    memories = [deque[float](maxlen=memory) for _ in range(GROUPS)]
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.5), []
    for seed in range(count):
        x, y, groups = batch(seed)
        logits = model(x)
        for answer, label, group in zip(logits.argmax(1), y, groups, strict=True):
            memories[group].append(float(answer == label))
        full = [g for g in range(GROUPS) if len(memories[g]) == memory]
        gap = {g: float(DENSE.groups[g]) - sum(memories[g]) / memory for g in full}
        size = sum(int(DENSE.counts[g]) for g in full)
        mean = sum(int(DENSE.counts[g]) * gap[g] for g in full) / max(size, 1)
        for g in full:
            multipliers[g] = max(0.0, multipliers[g] + rate * (gap[g] - mean - 0.01))
        overall = F.cross_entropy(logits, y)
        loss = overall
        for g in groups.unique().tolist():
            own = F.cross_entropy(logits[groups == g], y[groups == g])
            loss = loss + multipliers[g] * (own - overall)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, torch.tensor(multipliers).double()


@pytest.mark.parametrize("memory", [4, 20])
def test_equals_its_steps_by_hand(memory: int) -> None:
    losses, multipliers = oracle(expected := model_of(), 30, memory, 0.3)
    fair = DisparateImpact(DENSE, rate=0.3, memory=memory)
    found = steps(model := model_of(), fair, range(30))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fair.multipliers, multipliers)
    assert (fair.multipliers >= 0).all()
    assert 0 < (fair.multipliers > 0).sum() < GROUPS
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_groups_without_a_full_memory_have_no_step() -> None:
    fair = DisparateImpact(DENSE, rate=0.3, memory=20)
    steps(model_of(), fair, range(4))
    rare = fair.seen < 20
    assert rare[4]
    assert not rare.all()
    assert (fair.multipliers[rare] == 0).all()


def test_off_is_the_loss_bit_for_bit() -> None:
    x, y, groups = batch(0)
    for fair in (DisparateImpact(DENSE).eval(), DisparateImpact(DENSE, recipe=pruning()[1])):
        logits = model_of()(x)
        assert torch.equal(fair(logits, y, groups), F.cross_entropy(logits, y))
        assert not fair.seen.any()


def pruning() -> tuple[nn.Module, recipes.GMP, torch.optim.Optimizer]:
    recipe = recipes.GMP("75%", end_share=0.5, every=1)
    model = recipe.prepare(nn.Sequential(nn.Linear(16, 3)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    recipe.attach(model, optimizer, total_steps=10)
    return model, recipe, optimizer


def test_begins_when_the_recipe_has_pruned() -> None:
    model, recipe, optimizer = pruning()
    fair, begun = DisparateImpact(DENSE, recipe=recipe), []
    for seed in range(10):
        x, y, groups = batch(seed)
        begun.append(fair.has_begun)
        optimizer.zero_grad()
        fair(model(x), y, groups).backward()
        optimizer.step()
    assert begun == sorted(begun)
    assert 3 <= sum(begun) <= 6
    assert int(fair.seen.sum()) == 24 * sum(begun)
    recipe.finish(model)
    assert fair.has_begun


def test_a_resumed_run_is_bit_equal() -> None:
    fair = DisparateImpact(DENSE, rate=0.3, memory=6)
    whole = steps(model := model_of(), fair, range(12))
    first = DisparateImpact(DENSE, rate=0.3, memory=6)
    begun = steps(cut := model_of(), first, range(5))
    file = io.BytesIO()
    torch.save([first.state_dict(), cut.state_dict()], file)
    file.seek(0)
    again, resumed = DisparateImpact(DENSE, rate=0.3, memory=6), model_of(seed=1)
    for one, state in zip((again, resumed), torch.load(file), strict=True):
        one.load_state_dict(state)
    assert begun + steps(resumed, again, range(5, 12)) == whole
    assert torch.equal(again.multipliers, fair.multipliers)
    for a, b in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accuracies_and_gaps_are_those_of_the_definition() -> None:
    model, batches = model_of(), [batch(0), batch(1, 7)]
    model.train()
    found = group_accuracy(model, batches, GROUPS + 1)
    assert model.training
    x, y, groups = (torch.cat(parts) for parts in zip(*batches, strict=True))
    right = (model(x).argmax(1) == y).double()
    for g in range(GROUPS):
        if (groups == g).any():
            assert found.groups[g] == right[groups == g].mean()
    assert found.groups[GROUPS].isnan()
    assert found.overall == pytest.approx(float(right.mean()))
    gaps = DisparateImpact(found).gaps(GroupAccuracy(found.groups - 0.1, found.counts))
    torch.testing.assert_close(gaps[:4], torch.zeros(4).double())
    lost = torch.tensor([0.3, 0, 0, 0, 0]).double()
    gaps = DisparateImpact(DENSE).gaps(GroupAccuracy(DENSE.groups - lost, DENSE.counts))
    torch.testing.assert_close(gaps, lost - 0.3 * 40 / 105)


def call(**changed: Any) -> Tensor:
    x, y, groups = batch(0)
    given = {"logits": model_of()(x), "labels": y, "groups": groups} | changed
    loss: Tensor = DisparateImpact(DENSE)(**given)
    return loss


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: DisparateImpact(DENSE, memory=0), ArgumentError, "memory=0"),
        (lambda: DisparateImpact(DENSE, rate=-1.0), ArgumentError, "rate"),
        (lambda: call(groups=torch.full((24,), 5)), ArgumentError, "from 5 to 5; there are 5"),
        (lambda: call(groups=torch.zeros(24)), DTypeError, "int64"),
        (lambda: call(groups=torch.zeros(3, dtype=torch.long)), ShapeError, "3 groups"),
        (lambda: group_accuracy(model_of(), [], 2), ArgumentError, "no samples"),
        (lambda: group_accuracy(model_of(), [batch(0)], 2), ArgumentError, "there are 2"),
    ],
)
def test_what_does_not_fit_is_refused(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()
