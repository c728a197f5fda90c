"""Many tiny transport problems: equal to a plain loop, for every size, dtype and ISA."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer import backend, ot

ISAS = [isa for isa in backend.isas() if isa in ("avx512", "avx2", "portable")]
SIZES = [(1, 1), (4, 4), (8, 8), (16, 16), (3, 3), (4, 5), (7, 2), (16, 9), (1, 6)]


@pytest.fixture(autouse=True)
def _isa() -> Iterator[None]:
    yield
    backend.use_isa(None)


def oracle(scores: Tensor, rounds: int, a: Tensor, b: Tensor) -> Tensor:
    """Rounds of Sinkhorn on logarithms, in float64."""
    logs = scores.double()
    for _ in range(rounds):
        logs = logs - logs.logsumexp(-1, keepdim=True) + a.double().log()[:, None]
        logs = logs - logs.logsumexp(-2, keepdim=True) + b.double().log()
    return logs.exp()


def problems(count: int, n: int, m: int, dtype: torch.dtype, scale: float = 2.0) -> Any:
    random = torch.Generator().manual_seed(count + 17 * n + m)
    scores = scale * torch.randn(count, n, m, generator=random, dtype=torch.float64)
    grad = torch.randn(count, n, m, generator=random, dtype=torch.float64)
    a = torch.rand(n, generator=random, dtype=torch.float64) + 0.2
    b = torch.rand(m, generator=random, dtype=torch.float64) + 0.2
    b *= a.sum() / b.sum()
    return [t.to(dtype) for t in (scores, grad, a, b)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_plan_and_gradient_are_those_of_a_plain_loop(
    n: int, m: int, dtype: torch.dtype, isa: str
) -> None:
    backend.use_isa(isa)
    for count, rounds in ((1, 1), (37, 20), (130, 3)):
        scores, grad, a, b = problems(count, n, m, dtype)
        scores.requires_grad_()
        plan = ot.sinkhorn_small(scores, rounds, a=a, b=b)
        (found,) = torch.autograd.grad(plan, scores, grad)
        expected = oracle(scores, rounds, a, b)
        (slope,) = torch.autograd.grad(expected, scores, grad.double())
        rtol, atol = (2e-5, 1e-6) if dtype == torch.float32 else (1e-11, 1e-13)
        assert plan.dtype == found.dtype == dtype
        torch.testing.assert_close(plan.double(), expected, rtol=rtol, atol=atol)
        torch.testing.assert_close(found.double(), slope.double(), rtol=rtol, atol=4 * atol)


def test_gradients_are_those_of_finite_differences() -> None:
    scores = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: ot.sinkhorn_small(s, 4), (scores,))
    logits = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ot.permutation_mixture(x, 3), (logits,))


def test_each_problem_is_alone_and_threads_do_not_matter() -> None:
    scores, grad, *_ = problems(300, 4, 4, torch.float32)
    many = run(scores, grad)
    for one in (0, 63, 64, 299):
        alone = run(scores[one], grad[one])
        assert all(torch.equal(a[one], b) for a, b in zip(many, alone, strict=True))
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(many, run(scores, grad), strict=True))
    torch.set_num_threads(threads)


def run(scores: Tensor, grad: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    scores = scores.clone().requires_grad_()
    plan = ot.sinkhorn_small(scores, **options)
    return plan.detach(), torch.autograd.grad(plan, scores, grad)[0]


def test_scores_far_apart_and_forbidden_entries() -> None:
    scores = 400 * torch.randn(50, 6, 6, generator=torch.Generator().manual_seed(3))
    plan, grad = run(scores, torch.ones_like(scores))
    assert torch.isfinite(plan).all()
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(plan.sum(-2), torch.ones(50, 6))
    scores = torch.randn(20, 4, 4)
    scores[:, 0, 1:3] = -math.inf
    plan, grad = run(scores, torch.randn(20, 4, 4))
    assert torch.isfinite(grad).all()
    assert plan[:, 0, 1:3].max() < 1e-20
    expected = oracle(scores, 20, torch.ones(4), torch.ones(4))
    torch.testing.assert_close(plan.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "row", "column"])
def test_a_problem_without_a_plan_is_nan_and_leaves_the_others(bad: float | str) -> None:
    scores, grad, *_ = problems(20, 4, 4, torch.float32)
    clean = run(scores, grad)
    if bad == "row":
        scores[7, 2] = -math.inf
    elif bad == "column":
        scores[7, :, 1] = -math.inf
    else:
        scores[7, 2, 1] = bad
    found = run(scores, grad)
    others = [i for i in range(20) if i != 7]
    for a, b in zip(found, clean, strict=True):
        assert torch.isnan(a[7]).all()
        assert torch.equal(a[others], b[others])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    scores, grad, *_ = problems(9, 4, 4, torch.float32)
    plan, slope = run(scores.to(dtype), grad.to(dtype))
    wide = run(scores.to(dtype).float(), grad.to(dtype).float())
    assert plan.dtype == slope.dtype == dtype
    assert torch.equal(plan, wide[0].to(dtype))
    assert torch.equal(slope, wide[1].to(dtype))


def test_strides_dimensions_and_nothing_at_all() -> None:
    scores = torch.randn(5, 3, 4, 4)
    turned = scores.mT
    assert torch.equal(ot.sinkhorn_small(turned), ot.sinkhorn_small(turned.contiguous()))
    assert torch.equal(ot.sinkhorn_small(scores)[2, 1], ot.sinkhorn_small(scores[2, 1]))
    assert ot.sinkhorn_small(torch.zeros(0, 4, 4)).shape == (0, 4, 4)
    one = torch.randn(())
    slope = run(scores, one.expand(5, 3, 4, 4))[1]
    assert torch.equal(slope, run(scores, one.expand(5, 3, 4, 4).contiguous())[1])


def test_it_compiles_and_maps() -> None:
    scores, grad, *_ = problems(40, 4, 4, torch.float32)
    torch.library.opcheck(
        torch.ops.gossamer.sinkhorn_small.default,
        (scores.clone().requires_grad_(), torch.ones(4), torch.ones(4), 5),
    )

    def loss(x: Tensor) -> Tensor:
        return (ot.sinkhorn_small(x * 2) * grad).sum()

    plain, compiled = (scores.clone().requires_grad_() for _ in range(2))
    loss(plain).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(compiled).backward()
    assert plain.grad is not None
    assert torch.equal(plain.grad, compiled.grad)
    mapped = torch.func.vmap(ot.sinkhorn_small, in_dims=1)(scores.view(10, 4, 4, 4))
    expected = ot.sinkhorn_small(scores.view(10, 4, 4, 4)).movedim(1, 0)
    assert torch.equal(mapped, expected)
    scores.requires_grad_()
    plan = ot.sinkhorn_small(scores)
    several = torch.stack([grad, 2 * grad.flip(0)])
    (slopes,) = torch.autograd.grad(plan, scores, several, is_grads_batched=True)
    for one, slope in zip(several, slopes, strict=True):
        assert torch.equal(slope, run(scores.detach(), one)[1])


def test_mixtures_of_permutations() -> None:
    logits = torch.randn(7, 24, dtype=torch.float64)
    plan = ot.permutation_mixture(logits, 4)
    weights = logits.softmax(-1)
    expected = torch.zeros(7, 4, 4, dtype=torch.float64)
    for k, p in enumerate(itertools.permutations(range(4))):
        for i, j in enumerate(p):
            expected[:, i, j] += weights[:, k]
    torch.testing.assert_close(plan, expected)
    ones = torch.ones(7, 4, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(-1), ones)
    torch.testing.assert_close(plan.sum(-2), ones)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ot.sinkhorn_small(torch.zeros(4)), gossamer.ShapeError, r"\[\.\.\., n, m\]"),
        (lambda: ot.sinkhorn_small(torch.zeros(4, 17)), gossamer.ShapeError, "1 to 16"),
        (lambda: ot.sinkhorn_small(torch.zeros(0, 3)), gossamer.ShapeError, "1 to 16"),
        (lambda: ot.sinkhorn_small(torch.zeros(3, 3).int()), gossamer.DTypeError, "float"),
        (lambda: ot.sinkhorn_small(torch.zeros(3, 3), 0), gossamer.ArgumentError, "iterations"),
        (lambda: ot.sinkhorn_small(torch.zeros(3, 3), 2000), gossamer.ArgumentError, "1000"),
        (lambda: ot.sinkhorn_small(torch.zeros(3, 3), a=torch.ones(2)), gossamer.ShapeError, "a"),
        (
            lambda: ot.sinkhorn_small(torch.zeros(2, 2), a=torch.tensor([3.0, -1.0])),
            gossamer.ArgumentError, "positive",
        ),
        (lambda: ot.sinkhorn_small(torch.zeros(2, 2), a=torch.ones(2) * 3), ot.ProblemError, "6"),
        (lambda: ot.permutation_mixture(torch.zeros(5), 3), gossamer.ShapeError, "6"),
        (lambda: ot.permutation_mixture(torch.zeros(5), 7), gossamer.ShapeError, "1 to 6"),
    ],
)  # fmt: skip
def test_bad_input_has_one_clear_error(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_the_binding_leaves_nothing_to_chance() -> None:
    core = backend.registry.module_of(torch.zeros(1)).transport
    good = torch.zeros(5, 3, 3)
    ones = torch.ones(3)
    for scores, a, b, plan in (
        (good[0], ones, ones, good), (good.mT, ones, ones, good), (good, ones[:2], ones, good),
        (good, ones, ones.double(), good), (good, ones, ones, good[:4]),
        (good, ones, ones, good.double()), (good.int(), ones, ones, good),
    ):  # fmt: skip
        with pytest.raises(gossamer.GossamerError):
            core.sinkhorn_small(scores, a, b, 3, plan)
        with pytest.raises(gossamer.GossamerError):
            core.sinkhorn_small_backward(scores, a, b, 3, plan, good.clone())
