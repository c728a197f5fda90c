"""CHT: scores by walking every path, what stays and grows, draws."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.errors import RecipeError
from gossamer.masks import random_structure
from gossamer.recipes import CHT
from gossamer.recipes.cht import link_scores
from support.recipe_course import attached, batch, network, take_step

pytestmark = pytest.mark.usefixtures("one_thread")


def walked(mask: Tensor, score: str) -> Tensor:
    """The score of each missing link, from the graph's nodes and neighbours; 0 where one is."""
    rows, cols = mask.shape
    nodes = [("out", i) for i in range(rows)] + [("in", j) for j in range(cols)]
    near = {n: set() for n in nodes}
    for i, j in mask.nonzero().tolist():
        near["out", i].add(("in", j))
        near["in", j].add(("out", i))
    found = torch.zeros(rows, cols)
    for i, j in product(range(rows), range(cols)):
        v, u = ("out", i), ("in", j)
        if u in near[v]:
            continue
        paths = [(a, b) for a in near[u] for b in near[v] if b in near[a]]
        community = {node for path in paths for node in path}
        inside = {n: len(near[n] & community) for n in community}
        external = {n: len(near[n] - community - {u, v}) for n in community}
        if score == "CH3-L3":
            found[i, j] = sum(((1 + external[a]) * (1 + external[b])) ** -0.5 for a, b in paths)
        else:
            found[i, j] = sum((1 + inside[n]) / (1 + external[n]) for n in community)
    return found


@pytest.mark.parametrize("score", ["CH3-L3", "CH2-L3n"])
@pytest.mark.parametrize("pattern", ["75%", "2:8", "80%:v4", "50%"])
def test_scores_are_those_of_all_paths(score: str, pattern: str) -> None:
    structure = random_structure((16, 24), pattern, 3)
    links = (torch.rand(structure.nnz, generator=torch.Generator().manual_seed(0)) < 0.8).float()
    graph = backend.scatter(links, structure).bool()
    expected = walked(graph, score)
    assert expected.count_nonzero() > 20
    found = link_scores(structure, links, score)
    torch.testing.assert_close(torch.where(graph, 0.0, found), expected)


def test_many_links_are_followed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = random_structure((16, 24), "75%", 1)
    whole = link_scores(structure, torch.ones(structure.nnz), "CH3-L3")
    monkeypatch.setattr("gossamer.recipes.cht.LINKS", 7)
    torch.testing.assert_close(link_scores(structure, torch.ones(structure.nnz), "CH3-L3"), whole)


@pytest.mark.parametrize("pattern", ["75%", "2:8", "75%:v4"])
def test_an_update_drops_the_smallest_and_grows_the_best_linked(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CHT(pattern, every=1, distribution="uniform")
    model, optimizer = attached(recipe, network(), 20)
    weight, seen = model[0].weight, []

    def spy(structure: object, links: Tensor, score: str) -> Tensor:
        seen.append(weight.to_dense().detach())
        return link_scores(structure, links, score)

    monkeypatch.setattr("gossamer.recipes.cht.link_scores", spy)
    take_step(model, optimizer, *batch(0))
    before = weight.mask()
    take_step(model, optimizer, *batch(1))
    vector = weight.pattern.vector
    old, new = (mask[::vector] for mask in (before, weight.mask()))
    size = seen[0].abs().unflatten(0, (-1, vector)).sum(1)
    count = int(recipe.share(1) * old.sum())
    limit = size[old].sort().values[count]
    graph = old & (size >= limit)
    assert 0 < count == (old & ~graph).sum()
    scores = walked(graph.repeat_interleave(vector, 0), "CH3-L3")
    scores = scores.unflatten(0, (-1, vector)).sum(1)
    assert torch.equal(new & graph, graph)
    assert new.sum() == old.sum()
    group = 8 if pattern == "2:8" else scores.numel()
    for part, kept, grown in zip(
        *(x.reshape(-1, group) for x in (scores, graph, new & ~graph)), strict=True
    ):
        if grown.any():
            assert part[grown].min() >= part[~kept & ~grown].max() - 1e-4


def test_ties_are_broken_by_chance_and_by_the_seed() -> None:
    """At 97 % most links have no path: without chance the first rows would fill up."""
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        recipe = CHT("97%", every=1, seed=seed, fraction=0.9)
        model, optimizer = attached(recipe, nn.Sequential(nn.Linear(64, 64)), 9)
        for t in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 64, generator=torch.Generator().manual_seed(t))).sum().backward()
            optimizer.step()
        masks.append(model[0].weight.mask())
        assert masks[-1].sum(1).max() < 24
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_soft_draws_by_magnitude_and_by_score() -> None:
    """The share of drawn links follows their scores; at the end nearly the largest stay."""
    recipe = CHT("50%", soft=True, every=1)
    recipe.total_steps = 1000
    values = torch.tensor([1.0, 2.0, 4.0])
    for t, exponent in ((0, 1.0), (1000, 3.0)):
        first = torch.zeros(3)
        for index in range(2000):
            first[recipe.strength(t, index, values).argmax()] += 1
        expected = values**exponent / (values**exponent).sum()
        torch.testing.assert_close(first / 2000, expected, atol=0.04, rtol=0.0)
    first = torch.zeros(3)
    for index in range(2000):
        first[recipe._chance(0, index, values[None])[0].argmax()] += 1
    torch.testing.assert_close(first / 2000, values / 7, atol=0.04, rtol=0.0)


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(RecipeError, match="score"):
        CHT("90%", score="CH4")
