"""STE and SR-STE: the papers' formula, and what the decay does to the mask."""

import pytest
import torch

from gossamer.errors import RecipeError
from gossamer.masks import mask_difference
from gossamer.patterns import parse_pattern
from gossamer.recipes import SRSTE, STE
from support.masked_course import batches, check_learns, fit, largest, network
from support.recipe_course import attached, take_step

pytestmark = pytest.mark.usefixtures("one_thread")


RULES = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.05}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pattern", ["1:4", "2:8", "2:4:v4", "75%", "block 4x4 50%"])
def test_srste_is_the_published_rule_under_every_optimizer(pattern: str, rule: str) -> None:
    """The oracle: torch's optimizer on a dense weight, whose gradient has the decay."""
    (kind, options), decay = RULES[rule], 0.5
    model, optimizer = attached(
        SRSTE(pattern, gradient_decay=decay), network(), 4, kind, lr=0.1, **options
    )
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    oracle = kind(theirs, **{"lr": 0.1, **options})
    for x, y in batches(4):
        take_step(model, optimizer, x, y)
        masks = [model[i].mask() for i in (0, 2)]
        w1, b1, w2, b2 = [p.detach().clone() for p in theirs]
        used = [(w1 * masks[0]).requires_grad_(), b1, (w2 * masks[1]).requires_grad_(), b2]
        b1.requires_grad_(), b2.requires_grad_()
        hidden = torch.tanh(x @ used[0].T + b1)
        torch.nn.functional.mse_loss(hidden @ used[2].T + b2, y).backward()
        for own, leaf in zip(theirs, used, strict=True):
            own.grad = leaf.grad
        for weight, mask in zip((theirs[0], theirs[2]), masks, strict=True):
            assert mask.sum() == parse_pattern(pattern).count(*weight.shape)
            weight.grad += decay * weight.detach() * ~mask
        oracle.step()
        for expected, own in zip(theirs, model.parameters(), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("momentum", "steps", "factor"), [(0.0, 1, 1.0), (0.9, 200, 10.0)])
def test_momentum_sums_the_decay(momentum: float, steps: int, factor: float) -> None:
    """Without other gradients a masked entry loses lr lambda / (1 - momentum) of itself a step."""
    recipe = SRSTE("1:4", gradient_decay=1e-3)
    model, optimizer = attached(
        recipe, network(), steps, torch.optim.SGD, lr=0.01, momentum=momentum
    )
    x = torch.zeros(4, 32)
    for _ in range(steps):
        before = model[0].weight.detach().clone()
        take_step(model, optimizer, x, model(x).detach())
    lost = 1.0 - (model[0].weight.detach() / before)[~model[0].mask()]
    torch.testing.assert_close(lost, torch.full_like(lost, 1e-5 * factor), rtol=0.05, atol=0.0)


def test_srste_reads_the_rate_of_the_schedule_and_leaves_frozen_layers_alone() -> None:
    recipe = SRSTE("1:4", gradient_decay=0.5)
    model = recipe.prepare(network())
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.1
    )
    recipe.attach(model, optimizer, total_steps=3)
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    take_step(model, optimizer, *batches(1)[0])
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])
    optimizer.zero_grad()
    after = model[2].weight.detach().clone()
    optimizer.step()  # no gradient, as of a layer that is frozen for a while
    assert torch.equal(model[2].weight, after)


def test_srste_without_decay_is_ste_bit_for_bit() -> None:
    ends = []
    for recipe in (STE("2:8"), SRSTE("2:8", gradient_decay=0.0)):
        model, optimizer = fit(recipe, 20, optimizer=torch.optim.AdamW)
        for x, y in batches(20):
            take_step(model, optimizer, x, y)
        ends.append(model)
    assert all(map(torch.equal, *(list(m.parameters()) for m in ends)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_decay_makes_fewer_entries_change_places(optimizer: type) -> None:
    """SAD with lambda > 0 is smaller than with lambda = 0, from the same seed."""
    lr = 0.3 if optimizer is torch.optim.SGD else 0.02
    sad = {}
    for decay in (0.0, 5.0):
        model, steps_of = fit(SRSTE("2:8", gradient_decay=decay), 80, lr, optimizer)
        total = 0
        for number, (x, y) in enumerate(batches(80)):
            before = [layer.structure for layer in (model[0], model[2])]
            take_step(model, steps_of, x, y)
            if number:
                after = [layer.structure for layer in (model[0], model[2])]
                total += sum(map(mask_difference, before, after))
        sad[decay] = total
    assert 0 < sad[5.0] < 0.8 * sad[0.0]


def test_masked_entries_come_back() -> None:
    """The mask is that of the current weight: straight-through gradients move it."""
    model, optimizer = fit(STE("2:8"), 40, 0.3)
    first = model[0].mask()
    for x, y in batches(40):
        weight = model[0].weight.detach().clone()
        take_step(model, optimizer, x, y)
        assert torch.equal(model[0].mask(), largest(weight, 2, 8))
    assert (model[0].mask() & ~first).any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SRSTE("2:4", gradient_decay=-1.0), "at least 0"),
        (lambda: SRSTE("2:4", gradient_decay=float("nan")), "not NaN"),
    ],
)
def test_bad_settings_are_refused(make: object, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [STE, SRSTE])
def test_it_learns(kind: type[STE | SRSTE]) -> None:
    check_learns(kind("2:4"))
