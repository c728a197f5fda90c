"""Sparse autoencoders and their losses against dense formulas; the comparison that is published."""

import copy
import io
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gossamer.codes import (
    Code,
    TopKAutoencoder,
    explained_variance,
    geometric_median,
    hierarchical_loss,
    top_k,
)
from gossamer.errors import ArgumentError, DTypeError, ShapeError

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def small(**options: object) -> TopKAutoencoder:
    torch.manual_seed(1)
    model = TopKAutoencoder(features=10, latents=40, k=4, dtype=F64, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        model.latent_bias.normal_(std=0.1)
        model.pre_bias.normal_(std=0.1)
    return model


def data(rows: int = 30, d: int = 10) -> Tensor:
    return torch.randn(rows, d, dtype=F64)


def dense_code(model: TopKAutoencoder, x: Tensor) -> Tensor:
    """ReLU(TopK(W_enc (x - b_pre) + b_lat)), every latent a column."""
    pre = (x - model.pre_bias) @ model.encoder.T + model.latent_bias
    values, indices = torch.topk(pre, model.k)
    return torch.zeros_like(pre).scatter(1, indices, values.relu())


def gradients(model: TopKAutoencoder, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_the_autoencoder_is_its_formula() -> None:
    model, x = small(), data()
    want = dense_code(model, x) @ model.decoder + model.pre_bias
    torch.testing.assert_close(model(x), want)
    model.input_variance.fill_(0.3)
    loss = model.loss(x)
    dense = (x - want).square().mean() / 0.3
    torch.testing.assert_close(loss.total, dense)
    assert loss.auxiliary == 0
    for mine, theirs in zip(gradients(model, loss.total), gradients(model, dense), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_starts_tied_and_with_unit_rows() -> None:
    model = TopKAutoencoder(features=12, latents=30, k=3)
    norms = model.encoder.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.decoder, model.encoder / norms)
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(30))
    assert (model.k, model.aux_k, model.aux_weight, model.dead_tokens) == (3, 30, 1 / 32, 10**7)
    adam = model.adam()
    assert (adam.defaults["lr"], adam.defaults["eps"]) == (1e-4, 6.25e-10)


def test_start_from_fits_the_data() -> None:
    model, x = small(), 3.0 * data(400) + 5.0
    model.start_from(x)
    torch.testing.assert_close(model.pre_bias.detach(), geometric_median(x))
    torch.testing.assert_close(model.input_variance, (x - x.mean(0)).square().mean())
    unit = torch.nn.functional.normalize(torch.randn(4000, 10, dtype=F64))
    back = (model(unit + model.pre_bias) - model.pre_bias).detach().norm(dim=1).mean()
    assert 0.8 < float(back) < 1.25
    with pytest.raises(ArgumentError, match="variance"):
        model.start_from(torch.ones(5, 10, dtype=F64))


def test_the_geometric_median_is_a_minimum() -> None:
    x = torch.randn(51, 3, dtype=F64).exp()
    median = geometric_median(x)

    def distance(at: Tensor) -> float:
        return float((x - at).norm(dim=1).sum())

    best = distance(median)
    assert all(best <= distance(median + 1e-3 * torch.randn(3)) for _ in range(200))
    assert best < distance(x.mean(0))


def test_the_gradient_along_a_decoder_row_is_removed() -> None:
    model, x = small(), data()
    model.project_gradient_()  # nothing yet: nothing to do
    model.loss(x).total.backward()
    assert (model.decoder.grad * model.decoder).sum(1).abs().max() > 1e-4
    before = model.decoder.grad.clone()
    model.project_gradient_()
    assert (model.decoder.grad * model.decoder).sum(1).abs().max() < 1e-15
    removed = before - model.decoder.grad
    along = (removed * model.decoder).sum(1, keepdim=True) * model.decoder
    torch.testing.assert_close(removed, along.detach())
    model.adam(lr=0.1).step()
    assert (model.decoder.norm(dim=1) - 1).abs().max() > 1e-3
    model.normalise_()
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(40, dtype=F64))


def test_dead_latents_are_counted_and_revived() -> None:
    model, x = small(dead_tokens=50, aux_k=3), data()
    with torch.no_grad():
        model.latent_bias[:8] = -100.0  # never active
    model.loss(x)
    fired = (dense_code(model, x) > 0).any(0)
    assert torch.equal(model.tokens_since_active == 0, fired)
    assert (model.tokens_since_active[~fired] == 30).all()
    assert not model.dead.any()
    before = model.tokens_since_active.clone()
    model.eval()
    model.loss(x)
    assert torch.equal(model.tokens_since_active, before)  # evaluation counts nothing
    model.train()
    loss = model.loss(x)
    assert torch.equal(model.dead, ~fired)
    # The oracle: the best three dead latents of each row reconstruct what is left.
    pre = (x - model.pre_bias) @ model.encoder.T + model.latent_bias
    values, at = torch.topk(pre.masked_fill(~model.dead, -torch.inf), 3)
    z = torch.zeros_like(pre).scatter(1, at, values.relu())
    residual = (x - model(x)).detach()
    scale = (residual - residual.mean(0)).square().mean()
    want = (z @ model.decoder - residual).square().mean() / scale
    torch.testing.assert_close(loss.auxiliary, want)
    torch.testing.assert_close(loss.total, loss.reconstruction + want / 32)
    everyone = list(model.parameters())
    mine = torch.autograd.grad(loss.auxiliary, everyone)
    theirs = torch.autograd.grad(want, everyone)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert (mine[0][~model.dead] == 0).all()
    assert model.eval().loss(x).auxiliary == 0  # it serves training alone


def test_selected_at_zero_is_not_active() -> None:
    model = small()
    with torch.no_grad():
        model.latent_bias.fill_(-100.0)
    model.loss(data())
    assert (model.tokens_since_active == 30).all()


def test_fewer_dead_latents_than_asked_for() -> None:
    model = small(dead_tokens=0, aux_k=1000)
    loss = model.loss(data())
    assert 0 < int(model.dead.sum()) < 40
    assert loss.auxiliary.isfinite()
    assert model.loss(data(1)).auxiliary == 0  # one row has no variance to explain


def test_state_survives() -> None:
    model = small(dead_tokens=5)
    model.start_from(data())
    model.loss(data())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = small(dead_tokens=5)
    other.load_state_dict(torch.load(file))
    x = data()
    assert torch.equal(model.loss(x).total, other.loss(x).total)
    assert torch.equal(model.tokens_since_active, other.tokens_since_active)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_training_explains_sparse_data() -> None:
    torch.manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(32, 16))
    places = torch.rand(4096, 32).topk(3).indices
    x = torch.zeros(4096, 32).scatter(1, places, torch.rand(4096, 3) + 0.5) @ truth
    model = TopKAutoencoder(features=16, latents=64, k=3, dead_tokens=2048, aux_k=16)
    model.start_from(x)
    adam = model.adam(lr=3e-3)
    start = explained_variance(x, model(x))
    for step in range(300):
        adam.zero_grad()
        model.loss(x[torch.arange(step * 256, step * 256 + 256) % 4096]).total.backward()
        model.project_gradient_()
        adam.step()
        model.normalise_()
    assert 1 - explained_variance(x, model(x)) < 0.4 * (1 - start)


# ---- HierarchicalTopK ----------------------------------------------------------------------------


def partial_errors(x: Tensor, z: Tensor, at: Tensor, W: Tensor, b: Tensor, j: int) -> Tensor:
    return (x - b - torch.einsum("bk,bkd->bd", z[:, :j], W[at[:, :j]])).square().sum(1)


@pytest.mark.parametrize("levels", [None, (1,), (6,), (2, 5), (5, 2, 5)])
def test_hierarchical_loss(levels: tuple[int, ...] | None) -> None:
    code = top_k(torch.randn(9, 20, dtype=F64), 6)
    leaves = [data(9), code.values, torch.randn(20, 10, dtype=F64), torch.randn(10, dtype=F64)]
    leaves = [t.clone().requires_grad_() for t in leaves]
    x, z, W, b = leaves
    mine = hierarchical_loss(x, Code(z, code.indices), W, b, levels)
    named = sorted(set(levels or range(1, 7)))
    want = torch.stack([partial_errors(x, z, code.indices, W, b, j) for j in named]).mean()
    torch.testing.assert_close(mine, want)
    theirs = torch.autograd.grad(want, leaves)
    for a, e in zip(torch.autograd.grad(mine, leaves), theirs, strict=True):
        torch.testing.assert_close(a, e)


def test_hierarchical_gradients_by_differences() -> None:
    code = top_k(torch.randn(4, 12, dtype=F64), 5)
    leaves = (data(4), code.values.clone(), torch.randn(12, 10, dtype=F64), data(1)[0])
    leaves = tuple(t.requires_grad_() for t in leaves)
    assert torch.autograd.gradcheck(
        lambda x, z, W, b: hierarchical_loss(x, Code(z, code.indices), W, b, (1, 3, 4)), leaves
    )


def test_the_last_level_alone_is_topk() -> None:
    plain, hierarchical, x = small(), small(levels=(4,)), data()
    a, b = plain.loss(x).total, hierarchical.loss(x).total
    torch.testing.assert_close(a, b)
    for mine, theirs in zip(gradients(hierarchical, b), gradients(plain, a), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_hierarchical_errors_fall_with_each_latent() -> None:
    model, x = small(levels=(1, 2, 3, 4)), data(2000)
    adam = model.adam(lr=1e-2)
    for _ in range(60):
        adam.zero_grad()
        model.loss(x).total.backward()
        adam.step()
    code = model.encode(x)
    W, b = model.decoder, model.pre_bias
    errors = [
        float(partial_errors(x, code.values, code.indices, W, b, j).sum().detach())
        for j in (1, 2, 3, 4)
    ]
    assert all(b < a for a, b in pairwise(errors))


@pytest.mark.parametrize("levels", [(), (0,), (5,), (1.5,), (-1, 2)])
def test_levels_out_of_range(levels: tuple[int, ...]) -> None:
    with pytest.raises((ArgumentError, DTypeError), match="levels"):
        small(levels=levels)
    code = Code(torch.ones(2, 4), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ArgumentError, match="levels"):
        hierarchical_loss(torch.ones(2, 3), code, torch.ones(5, 3), None, levels)


# ---- gradient-TopK -------------------------------------------------------------------------------


def test_gradient_selection_without_strength_is_topk() -> None:
    model, x = small(beta=0.0), data()
    plain, guided = model.encode(x), model.encode(x, torch.randn_like(x))
    assert torch.equal(plain.indices, guided.indices)
    assert torch.equal(plain.values, guided.values)
    strong = small(beta=3.0)
    assert torch.equal(strong.encode(x).indices, plain.indices)  # without a gradient too
    assert torch.equal(strong.encode(x, torch.zeros_like(x)).indices, plain.indices)


def test_gradient_selection_is_its_formula() -> None:
    model, x, g = small(beta=2.0), data(), data()
    pre = (x - model.pre_bias) @ model.encoder.T + model.latent_bias
    score = pre + 2.0 * pre * (g @ model.decoder.T).abs()
    indices = torch.topk(score, 4).indices
    code = model.encode(x, g)
    assert torch.equal(code.indices, indices)
    torch.testing.assert_close(code.values, pre.gather(1, indices).relu())  # kept, not scaled
    assert not torch.equal(indices, model.encode(x).indices)
    want = (x - (torch.zeros_like(pre).scatter(1, indices, pre.gather(1, indices).relu())
                 @ model.decoder + model.pre_bias)).square().mean()  # fmt: skip
    loss = model.loss(x, g)
    torch.testing.assert_close(loss.total, want)
    for a, b in zip(gradients(model, loss.total), gradients(model, want), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ShapeError, match="input_gradient"):
        model.encode(x, g[:3])


@pytest.mark.parametrize(
    "options",
    [{"features": 0}, {"k": 0}, {"k": 41}, {"latents": 0}, {"aux_k": -1}, {"dead_tokens": -1},
     {"beta": -1.0}, {"aux_weight": math.nan}],
)  # fmt: skip
def test_sizes_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ArgumentError):
        TopKAutoencoder(**({"features": 10, "latents": 40, "k": 4} | options))  # type: ignore[arg-type]


def test_bad_batches() -> None:
    model = small()
    for x in (torch.ones(3, 9, dtype=F64), torch.ones(10, dtype=F64), torch.ones(0, 10, dtype=F64)):
        with pytest.raises(ShapeError, match=r"\[batch, 10\]"):
            model(x)
    with pytest.raises(ArgumentError, match="NaN in row 1"):
        model(torch.tensor([[0.0] * 10, [math.nan] * 10], dtype=F64))
