"""CHT: growth by the topology of the layer alone, without gradients.

A layer is a graph of inputs and outputs. A missing link u-v is scored by its paths of three links
u-z1-z2-v; di and de are the links of a node z into and out of the nodes of all such paths:

    CH3-L3    sum over paths of 1 / sqrt((1 + de_z1) (1 + de_z2))      in products of d^3 N
    CH2-L3n   sum over their nodes of (1 + di_z) / (1 + de_z)           in four products N^2 d
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.backend.growth import grow_largest
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.recipes.base.checks import check_choice
from gossamer.recipes.base.slots import Slots
from gossamer.recipes.set import SET

Score = Literal["CH3-L3", "CH2-L3n"]

# Links whose paths are followed at a time.
LINKS = 1024
# Of the largest score: below it scores count as equal, and chance decides.
TIE = 1e-6


@dataclass(eq=False)
class CHT(SET):
    """Cannistraci-Hebb growth, without the paper's first masks and removal of idle neurons.

    Like `SET`, except for what grows: the missing links with the largest score in the graph that
    the drop has left; of equal ones chance decides. First masks are random. With `soft` links are
    drawn: those that stay with a probability that grows as |w|^T, T from 1 to 3 over the
    training, and those that grow as their score (CHTs). An update needs the scores of one layer as
    dense matrices. CH3-L3 costs as much as nnz^2 products: at 2048 x 2048 about 140 dense steps at
    90 %, 4 at 99 %; CH2-L3n costs 1.5 to 3. With either no gradient is computed.

    Where V rows share their columns each row is a node. A tile is one link of a smaller graph.

    Args:
        pattern: pattern of the kept entries, or its text.
        distribution: "uniform" or "erk"; None is "erk" unless the pattern is N:M.
        seed: seed of the masks and of chance.
        fraction: share of the kept entries that the first update drops; 0 moves nothing.
        every: steps between two updates; None is 100, or fewer so that 10 updates fit.
        end_share: point of the training, as a share of the steps, after which masks are fixed.
        score: "CH3-L3" or "CH2-L3n".
        soft: draw what stays and what grows.

    Raises:
        PatternError: an unknown pattern, or "erk" for an N:M pattern.
        RecipeError: a number out of range, or an unknown score.

    Reference:
        Zhang et al. 2024, "Epitopological learning and Cannistraci-Hebb network shape intelligence
        brain-inspired theory for ultra-sparse advantage in deep learning" (CH3-L3); Zhang et al.
        2025, "Brain network science modelling of sparse neural networks" (CH2-L3n and the draws,
        whose temperature is that of the published code).

    Example:
        >>> CHT("99%").score, CHT("90%", score="CH2-L3n", soft=True).soft
        ('CH3-L3', True)
    """

    score: Score = "CH3-L3"
    soft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.score, "CHT got score", ("CH3-L3", "CH2-L3n"))

    def strength(self, t: int, index: int, values: Tensor) -> Tensor:
        """Return the magnitudes by which entries stay; drawn with `soft`."""
        if not self.soft:
            return values
        temperature = 1.0 + 2.0 * t / self.total_steps
        drawn = self._exponential(t, index, values.shape, 1)
        return values.detach().double().abs().pow(temperature) / drawn

    def grown(
        self, t: int, index: int, name: str, slots: Slots, old: Structure, stays: Tensor
    ) -> Structure | None:
        """Return the structure with the grown slots."""
        links = stays.to(torch.float32).repeat_interleave(old.layout.vector)
        scores = link_scores(old, links, self.score)
        return grow_largest(old, stays, [self._chance(t, index, scores)])

    def growth(self, t: int, index: int, name: str, slots: Slots) -> Tensor | None:
        """Return the rank of each slot to grow [slots], in the graph before the drop."""
        structure = cast(SparseLayer, self.layers[name]).structure
        scores = link_scores(structure, torch.ones(structure.nnz), self.score)
        return slots.sums(self._chance(t, index, scores))

    def _chance(self, t: int, index: int, scores: Tensor) -> Tensor:
        """Return ranks: scores whose ties chance breaks, or a draw by the scores."""
        least = TIE * scores.max().clamp_min(1.0)
        if self.soft:  # the largest s / e, e exponential, are a draw without replacement by s
            return (scores + least) / self._exponential(t, index, scores.shape, 2).to(scores.dtype)
        noise = torch.rand(scores.shape, generator=self.generator(t, index, self.seed))
        return scores + least * noise

    def _exponential(self, t: int, index: int, shape: torch.Size, stream: int) -> Tensor:
        generator = self.generator(t, index, self.seed + stream)
        return torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)


def link_scores(structure: Structure, links: Tensor, score: Score) -> Tensor:
    """Return the score of every missing link, float32 [rows, cols]; kept ones have any.

    Args:
        structure: the links, rows are outputs.
        links: [nnz], 1 for a link and 0 for none.
        score: "CH3-L3" or "CH2-L3n".

    Example:
        >>> mask = torch.tensor([[True, True, False], [False, True, True]])
        >>> structure = backend.encode(mask, vector=1)
        >>> link_scores(structure, torch.ones(4), "CH3-L3")[0, 2].item()
        1.0
    """
    graph = backend.scatter(links, structure)
    outer, inner = graph.sum(1), graph.sum(0)
    # Common neighbours of two outputs [v, z1] and of two inputs [z2, u]. Of the links of z1 one
    # leads to u: the rest of what is not common is external.
    common = backend.spmm(graph, links, structure)
    shared = backend.spmm_t(graph.t(), links, structure)
    first = (outer - common).clamp_min_(1.0)
    second = (inner[:, None] - shared).clamp_min_(1.0)
    if score == "CH2-L3n":
        by_output = torch.where(common > 0, (1.0 + common) / first, 0.0)
        by_input = torch.where(shared > 0, (1.0 + shared) / second, 0.0)
        found = backend.spmm_t(by_output, links, structure)
        return found.add_(backend.spmm(by_input.t(), links, structure).t())  # type: ignore[no-any-return]
    first, second = first.rsqrt_(), second.rsqrt_()
    columns, scores = graph.t().contiguous(), torch.zeros_like(graph)
    for part in graph.nonzero().split(LINKS):
        v, z2 = part.unbind(1)
        paths = backend.spmm_t(columns[z2].mul_(first[v]), links, structure)
        scores.index_add_(0, v, paths.mul_(second[z2]))
    return scores


__all__ = ["CHT", "link_scores"]
