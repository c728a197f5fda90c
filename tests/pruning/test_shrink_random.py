"""shrink() and prune() on networks drawn at random: any order of layers, sums, concatenations."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.errors import ArgumentError
from gossamer.pruning import prune, shrink
from support.submodels import redrawn, zeroed

STEPS = ("conv", "pad", "reflect", "depthwise", "norm", "act", "add", "mul", "cat", "gate", "twice")
ACTS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.SiLU)


class Drawn(nn.Module):
    """Steps that read earlier results, and a head that reads the last; many entries are zero."""

    def __init__(self, steps: list[str], seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.plan: list[tuple[str, list[int]]] = []
        self.parts = nn.ModuleList()
        widths = [3]
        for step in steps:
            first = self._integer(max(0, len(widths) - 3), len(widths))
            width = widths[first]
            other = [i for i, w in enumerate(widths) if w == width and i > 0]
            out, part = width, nn.Identity()
            if step in ("conv", "pad", "reflect"):
                out = self._integer(2, 7)
                part = nn.Conv2d(width, out, 1 if step == "conv" else 3, bias=seed % 3 > 0)
                if step != "conv":
                    part.padding = (1, 1)
                    part._reversed_padding_repeated_twice = [1] * 4
                    part.padding_mode = "reflect" if step == "reflect" else "zeros"
            elif step == "depthwise":
                out = width * self._integer(1, 3)
                part = nn.Conv2d(width, out, 3, padding=1, groups=width)
            elif step == "norm":
                part = nn.BatchNorm2d(width)
            elif step == "act":
                part = ACTS[self._integer(0, len(ACTS))]()
            elif step == "gate":
                part = nn.Sequential(nn.Linear(width, 3), nn.ReLU(), nn.Linear(3, width))
            elif step == "twice":
                part = nn.Conv2d(width, width, 1)
            second = other[self._integer(0, len(other))] if other else first
            if step == "cat":
                out = 2 * width
            self.plan.append((step, [first, second]))
            self.parts.append(part)
            widths.append(out)
        self.head = nn.Linear(widths[-1] * 16, 4)
        self._zero()

    def _integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self.generator))

    @torch.no_grad()
    def _zero(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                rows = torch.rand(len(module.weight), generator=self.generator) < 0.45
                module.weight[rows] = 0
                if module.weight.dim() > 1 and not isinstance(module, nn.BatchNorm2d):
                    columns = torch.rand(module.weight.shape[1], generator=self.generator) < 0.25
                    module.weight[:, columns] = 0
                if module.bias is not None:
                    module.bias.copy_(torch.randn(len(rows), generator=self.generator))
                    silent = torch.rand(len(rows), generator=self.generator) < 0.6
                    module.bias[rows & silent] = 0
        del self.generator

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for (step, (first, second)), part in zip(self.plan, self.parts, strict=True):
            a, b = found[first], found[second]
            if step == "add":
                y = a + b
            elif step == "mul":
                y = a * b
            elif step == "cat":
                y = torch.cat([a, a], 1)
            elif step == "gate":
                y = a * torch.sigmoid(part(a.mean((2, 3))))[:, :, None, None]
            elif step == "twice":
                y = part(torch.relu(part(a)))
            else:
                y = part(a)
            found.append(y)
        return self.head(torch.tanh(found[-1]).flatten(1))


def becomes_smaller(steps: list[str], seed: int) -> bool:
    """Shrink a network that is drawn; its outputs on data that shrink has not seen must stay."""
    torch.set_num_threads(1)
    model = Drawn(steps, seed)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smaller = shrink(model, torch.zeros(1, 3, 4, 4)).eval()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    expected = model.eval()(x)
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(smaller(x), expected, rtol=0, atol=1e-5 * scale)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, smaller)]
    return sizes[1] < sizes[0]


@settings(derandomize=True, max_examples=150)
@given(st.lists(st.sampled_from(STEPS), min_size=2, max_size=9), st.integers(0, 2**31))
@pytest.mark.slow
def test_any_network(steps: list[str], seed: int) -> None:
    becomes_smaller(steps, seed)


def test_most_of_them_become_smaller() -> None:
    """The test above is not about networks in which nothing can be removed."""
    draw = random.Random(0)
    found = [becomes_smaller(draw.choices(STEPS, k=6), seed) for seed in range(40)]
    assert sum(found) > 30


def is_pruned(steps: list[str], seed: int) -> bool:
    """Prune a network that is drawn; it must be the network with zeros, on other data."""
    torch.set_num_threads(1)
    model = Drawn(steps, seed)
    torch.manual_seed(seed % 1000)
    model = redrawn(model).eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    try:
        smaller, report = prune(model, x[:1], 0.3 + seed % 7 / 10, report=True)
    except ArgumentError:  # not that small
        return False
    assert not any("the model fails" in note for note in report.notes)
    expected = zeroed(model, smaller)(x)
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(smaller(x), expected, rtol=0, atol=1e-11 * scale)
    return True


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=2, max_size=9), st.integers(0, 2**31))
@pytest.mark.slow
def test_any_network_is_pruned_to_its_zeroed_self(steps: list[str], seed: int) -> None:
    is_pruned(steps, seed)


def test_most_of_them_can_be_pruned() -> None:
    draw = random.Random(0)
    found = [is_pruned(draw.choices(STEPS, k=6), seed) for seed in range(30)]
    assert sum(found) > 12
