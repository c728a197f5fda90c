"""PruneGroups: its proximal step, its schedule, the smaller model, and resuming."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ArgumentError, GossamerError, RecipeError
from gossamer.prox import WGSEF
from gossamer.pruning.report import cost_of
from gossamer.recipes import PruneGroups
from support.submodels import close, redrawn, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 40


class Block(nn.Module):
    """A residual block of a convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), Block(), nn.Conv2d(12, 20, 1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 3)),
    )


def attentive() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 40, dropout=0.0, batch_first=True)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutional": (convolutional, (6, 2, 6, 6)),
    "attentive": (attentive, (3, 5, 16)),
}


class Course:
    """A training on random data, with its own generator."""

    def __init__(self, name: str = "convolutional", total: int = STEPS, **options: Any) -> None:
        make, self.shape = NETWORKS[name]
        torch.manual_seed(0)
        self.model = redrawn(make())
        self.recipe = PruneGroups(**options)
        self.recipe.prepare(self.model, self.batch(0)[:2])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, weight_decay=0.0)
        self.recipe.attach(self.model, self.optimizer, total)

    def batch(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)

    def run(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.model.train()
            self.optimizer.zero_grad()
            self.model(self.batch(step)).square().mean().backward()
            self.optimizer.step()


@pytest.mark.parametrize("budget", ["flops", "bytes"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_model_is_the_trained_one(name: str, budget: str) -> None:
    course = Course(name, keep=0.5, budget=budget)
    whole = cost_of(course.model.eval(), (course.batch(0)[:2],), budget)
    course.run(0, STEPS)
    smaller = course.recipe.finish(course.model)
    assert smaller.training
    part = cost_of(smaller.eval(), (course.batch(0)[:2],), budget)
    assert 0.35 * whole < part <= 0.5 * whole
    x = course.batch(99)
    close(smaller(x), course.model.eval()(x), 1e-12)
    close(smaller(x), zeroed(course.model, smaller)(x), 1e-12)
    course.run(STEPS, STEPS + 1)  # it is detached
    with pytest.raises(AssertionError):
        close(smaller(x), course.model.eval()(x), 1e-12)


def test_a_llama_loses_heads_and_neurons_while_it_learns() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=8, num_key_value_heads=4, head_dim=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, tokens = transformers.LlamaForCausalLM(config), torch.randint(32, (2, 12))
    recipe = PruneGroups(0.5)
    recipe.prepare(model, tokens[:1])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    recipe.attach(model, optimizer, 60)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    smaller = recipe.finish(model)
    assert smaller(tokens, labels=tokens).loss.item() < 0.05 * losses[0]
    attention = smaller.model.layers[0].self_attn
    assert attention.q_proj.out_features == 2 * attention.k_proj.out_features < 32
    text = [
        m.eval().generate(tokens[:1, :4], max_new_tokens=5, do_sample=False)
        for m in (model, smaller)
    ]
    assert torch.equal(*text)


def test_one_step_is_the_proximal_step_on_whole_groups() -> None:
    """The parameters of one family as one vector, against the penalty on a custom partition."""
    course = Course(keep=0.3, strength=4.0, begin_share=0.0, end_share=1.0)
    model, recipe = course.model, course.recipe
    stream = {  # the stream of the residual network: what writes each of its 12 channels
        "0.weight": model[0].weight, "0.bias": model[0].bias,
        "1.weight": model[1].weight, "1.bias": model[1].bias,
        "3.conv.weight": model[3].conv.weight, "3.conv.bias": model[3].conv.bias,
        "3.norm.weight": model[3].norm.weight, "3.norm.bias": model[3].norm.bias,
    }  # fmt: skip
    t = 10
    before = torch.cat([p.detach().flatten() for p in stream.values()])
    labels = torch.cat([torch.arange(12).repeat_interleave(p[0].numel()) for p in stream.values()])
    share = recipe._share_at(recipe.cost_at(t))
    expected = WGSEF(4.0 / STEPS, k=12 * share, groups=labels, unbiased=True).prox(before)
    with torch.no_grad():
        recipe.after_step(t)
    found = torch.cat([p.detach().flatten() for p in stream.values()])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    factors = (found / before).view(-1)
    assert float(factors.max()) <= 1.0
    assert float(factors.min()) < 0.98


def test_the_budget_follows_the_cubic() -> None:
    recipe = PruneGroups(0.2, begin_share=0.25, end_share=0.75)
    recipe.total_steps = 100
    costs = [recipe.cost_at(t) for t in (0, 25, 50, 75, 99)]
    assert costs == pytest.approx([1.0, 1.0, 0.2 + 0.8 * 0.125, 0.2, 0.2])

    course = Course(keep=0.4)
    for cost in (0.4, 0.6, 0.9):  # the share of groups has this share of the cost
        share = course.recipe._share_at(cost)
        assert course.recipe._cost_of_share(share) == pytest.approx(cost, abs=0.08)
    assert course.recipe._share_at(1.0) == 1.0


def test_groups_fade_before_they_are_fixed() -> None:
    """The cut at the end changes the network little; without fading it changes it much."""
    changes = []
    for strength in (0.0, 200.0):
        course = Course(keep=0.4, strength=strength, total=120)
        last = int(0.75 * 120)
        course.run(0, last - 1)
        x = course.batch(77)
        before = course.model.eval()(x)
        kept = course.recipe._choose(course.model)
        course.recipe._ready().zero_(course.model, kept)
        changes.append(
            float((course.model(x) - before).detach().abs().max() / before.detach().std())
        )
    assert changes[1] < 0.02 < 0.3 < changes[0]


def test_what_is_zero_at_the_end_stays_zero() -> None:
    course = Course(keep=0.5)
    course.run(0, 31)
    kept = course.recipe.state["kept"].clone()
    course.run(31, STEPS)
    assert torch.equal(course.recipe.state["kept"], kept)
    groups = course.recipe._ready()
    squares = groups.squares(course.model)
    assert bool((squares[~kept] == 0).all())
    assert bool((squares[kept & groups.free] > 0).all())


@pytest.mark.parametrize("stop", [7, 29, 33])
def test_a_resumed_training_is_one_that_was_never_interrupted(stop: int) -> None:
    whole = Course(keep=0.5)
    whole.run(0, STEPS)
    course = Course(keep=0.5)
    course.run(0, stop)
    saved = copy.deepcopy(
        [course.recipe.state_dict(), course.model.state_dict(), course.optimizer.state_dict()]
    )
    other = Course(keep=0.5)
    other.recipe.load_state_dict(saved[0])
    other.model.load_state_dict(saved[1])
    other.optimizer.load_state_dict(saved[2])
    other.run(stop, STEPS)
    for a, b in zip(whole.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    one, two = (c.recipe.finish(c.model) for c in (whole, other))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_to_prune_is_the_plain_optimizer() -> None:
    course = Course(keep=1.0)
    plain = copy.deepcopy(course.model)
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3, weight_decay=0.0)
    course.run(0, 10)
    for step in range(10):
        optimizer.zero_grad()
        plain(course.batch(step)).square().mean().backward()
        optimizer.step()
    for a, b in zip(course.model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_training_may_end_early() -> None:
    course = Course(keep=0.5)
    course.run(0, 5)
    smaller = course.recipe.finish(course.model)
    x = course.batch(3)
    close(smaller.eval()(x), course.model.eval()(x), 1e-12)
    assert smaller[0].out_channels < 12


def test_what_is_excluded_or_cannot_follow_is_named() -> None:
    model = convolutional()
    recipe = PruneGroups(0.95)
    assert recipe.prepare(model, torch.randn(1, 2, 6, 6), exclude="3") is model
    assert recipe.notes[0] == "0, 1, 3.conv, 3.norm: excluded"
    assert recipe.notes[-1] == "8: they are outputs of the model"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": 0.0}, "keep=0; something must stay"),
        ({"keep": 1.5}, "PruneGroups got keep=1.5"),
        ({"begin_share": 0.5, "end_share": 0.5}, "must end after its beginning"),
        ({"round_to": 0}, "PruneGroups got round_to=0"),
        ({"budget": "time"}, "PruneGroups got budget='time'; choose flops or bytes"),
        ({"strength": -1.0}, "PruneGroups got strength=-1.0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(text)):
        PruneGroups(**options)


def test_errors() -> None:
    model, x = convolutional(), torch.randn(1, 2, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for act in (
        lambda r: r.attach(model, optimizer, 10),
        lambda r: r.finish(model),
    ):
        with pytest.raises(RecipeError, match=r"call prepare\(model, example\) before attach"):
            act(PruneGroups(0.5))
    with pytest.raises(ArgumentError, match=re.escape("PruneGroups.prepare cannot reach")):
        PruneGroups(0.01).prepare(model, x)
    recipe = PruneGroups(0.5)
    recipe.prepare(model, x)
    with pytest.raises(RecipeError, match="give the model that was prepared"):
        recipe.attach(attentive(), optimizer, 10)
    with pytest.raises(RecipeError, match="its schedule needs at least 2 steps"):
        recipe.attach(model, optimizer, 1)
    with pytest.raises(GossamerError, match="the optimizer misses"):
        recipe.attach(model, torch.optim.SGD([model[0].weight], 0.1), 10)
    recipe.attach(model, optimizer, 10)  # a refused call has changed nothing
