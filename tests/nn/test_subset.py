"""Training of chosen entries: gradients, steps to the bit, resuming, files, bytes, convolutions."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer.errors import GossamerError, PatternError
from gossamer.nn import SubsetLinear, merge_subset, train_subset

pytestmark = pytest.mark.usefixtures("one_thread")
DENSE: dict[str, Any] = {
    "linear": (lambda: nn.Linear(12, 8), (5, 3, 12)),
    "no bias": (lambda: nn.Linear(12, 8, bias=False), (4, 12)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), (2, 4, 7, 6)),
    "circular": (lambda: nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"), (2, 2, 5, 6)),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pair(kind: str) -> tuple[nn.Module, SubsetLinear, Tensor, Tensor]:
    """A dense layer, its counterpart, the mask in the shape of the weight, and an input."""
    torch.manual_seed(0)
    make, shape = DENSE[kind]
    dense = make().double()
    mask = drawn(*dense.weight.shape, seed=1) > 0.8
    return dense, SubsetLinear.from_dense(dense, mask), mask, drawn(*shape, seed=2)


def as_weight(layer: SubsetLinear) -> Tensor:
    return layer.to_dense().weight.detach()  # type: ignore[operator, return-value, union-attr]


@pytest.mark.parametrize("kind", DENSE)
def test_output_and_gradients_are_those_of_the_dense_layer(kind: str) -> None:
    dense, layer, mask, x = pair(kind)
    torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-12)
    grads = []
    for module in (dense, layer):
        own = x.clone().requires_grad_()
        module(own).square().sum().backward()
        grads.append(own.grad)
    torch.testing.assert_close(grads[0], grads[1])
    trained = layer.trained
    at = trained.mask()
    weight_grad: Any = dense.weight.grad  # type: ignore[union-attr]
    matrix = weight_grad.movedim(1, -1).reshape(at.shape) if weight_grad.dim() > 2 else weight_grad
    spread = torch.zeros_like(layer.weight)
    spread[at] = 1.0
    found = gossamer.SparseWeight(trained.values.grad, trained.structure, trained.pattern)
    torch.testing.assert_close(found.to_dense().detach(), matrix * spread)
    assert int(at.sum()) == int(mask.sum())
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)  # type: ignore[union-attr]


def test_the_gradient_is_that_of_differences() -> None:
    _, layer, _, x = pair("linear")

    def run(values: Tensor) -> Tensor:
        state = {"trained.values": values.clone()}  # differences are taken through .data
        return torch.func.functional_call(layer, state, (x[:1],))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (layer.trained.values.detach().clone().requires_grad_(),))
    layer(x)
    torch.testing.assert_close(layer.weight, pair("linear")[0].weight)


@pytest.mark.parametrize("kind", ["linear", "Conv2d"])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_steps_are_those_of_dense_adamw_with_masked_gradients_and_decay_to_the_bit(
    kind: str, share: float
) -> None:
    make, _ = DENSE[kind]
    torch.manual_seed(0)
    dense = make()
    mask = torch.rand(dense.weight.shape) < share
    layer = SubsetLinear.from_dense(dense, mask)
    start = dense.weight.detach().clone()
    given = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.0}
    whole = torch.optim.AdamW([dense.weight], **given)
    own = torch.optim.AdamW([layer.trained.values], **given | {"weight_decay": 0.1})
    for step in range(25):
        g = torch.randn(dense.weight.shape, generator=torch.Generator().manual_seed(step))
        with torch.no_grad():  # the decay of AdamW, where the mask is
            dense.weight.mul_(torch.where(mask, 1 - 1e-2 * 0.1, 1.0))
        dense.weight.grad = g * mask
        whole.step()
        matrix = g.movedim(1, -1).reshape(layer.weight.shape) if g.dim() > 2 else g
        layer.trained.values.grad = gossamer.backend.gather(matrix, layer.trained.structure)
        own.step()
    assert torch.equal(as_weight(layer), dense.weight)
    assert torch.equal(dense.weight[~mask], start[~mask])
    assert not torch.equal(dense.weight[mask], start[mask])


def training(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = drawn(4, 12, seed=step).float()
        optimizer.zero_grad()
        F.mse_loss(model(x), x[:, :4].cumsum(1)).backward()
        optimizer.step()


def subset_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    masks = {name: torch.rand(model[int(name)].weight.shape) < 0.2 for name in ("0", "2")}
    train_subset(model, masks)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)


def test_only_the_subset_trains_and_the_weight_follows_each_step() -> None:
    model, optimizer = subset_model()
    first: Any = model[0]
    before = first.weight.clone()
    training(model, optimizer, range(1))
    moved = first.weight != before  # without a forward pass after the step
    assert torch.equal(moved, first.trained.mask())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "0.trained.values", "2.trained.values"
    }  # fmt: skip
    with torch.no_grad():
        first.trained.values.zero_()
    assert model(drawn(2, 12).float()).isfinite().all()
    assert bool((first.weight[first.trained.mask()] == 0).all())


@pytest.mark.parametrize("at", [1, 4])
def test_a_resumed_training_is_the_uninterrupted_one(at: int) -> None:
    whole, optimizer = subset_model()
    training(whole, optimizer, range(8))
    first, stopped = subset_model()
    training(first, stopped, range(at))
    saved = copy.deepcopy((first.state_dict(), stopped.state_dict()))
    resumed, other = subset_model()
    training(resumed, other, range(2))
    state, of_optimizer = saved
    resumed.load_state_dict(state)
    other.load_state_dict(of_optimizer)
    training(resumed, other, range(at, 8))
    assert state.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_training_state_is_less_than_half_of_dense_adamw() -> None:
    dense = nn.Linear(1024, 1024, bias=False)
    layer = SubsetLinear.from_dense(dense, torch.rand(1024, 1024) < 0.2)
    optimizer = torch.optim.AdamW([layer.trained.values])
    layer(torch.randn(2, 1024)).sum().backward()
    optimizer.step()
    moments = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim())
    values = layer.trained.values
    assert values.grad is not None
    own = layer.weight.nbytes + layer.trained.nbytes + values.grad.nbytes + moments
    assert own <= 0.47 * 4 * dense.weight.nbytes


def test_the_mask_moves_and_takes_the_state_along() -> None:
    model, optimizer = subset_model()
    training(model, optimizer, range(3))
    layer: Any = model[0]
    old, weight = layer.trained.mask(), layer.weight.clone()
    moment = gossamer.backend.scatter(
        optimizer.state[layer.trained.values]["exp_avg"], layer.trained.structure
    )
    mask = torch.rand(16, 12, generator=torch.Generator().manual_seed(9)) < 0.4
    layer.set_mask(mask, optimizer)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.trained.to_dense().detach(), weight * mask)
    kept = gossamer.backend.scatter(
        optimizer.state[layer.trained.values]["exp_avg"], layer.trained.structure
    )
    assert torch.equal(kept, moment * (mask & old))
    training(model, optimizer, range(3, 5))
    assert torch.equal(layer.weight != weight, mask)


@pytest.mark.parametrize("kind", ["linear", "Conv2d"])
def test_copies_files_and_dense_layers_again(kind: str, tmp_path: Path) -> None:
    _, layer, mask, x = pair(kind)
    with torch.no_grad():
        layer.trained.values.mul_(2.0)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301 - our own
        assert torch.equal(twin(x), y)
        with torch.no_grad():
            twin.trained.values.zero_()
        assert not torch.equal(twin(x), y)
        assert torch.equal(layer(x), y)
    gossamer.save(nn.Sequential(layer), tmp_path)
    loaded: Any = gossamer.load(tmp_path, nn.Sequential(DENSE[kind][0]().double()))
    assert type(loaded[0]) is SubsetLinear
    assert torch.equal(loaded[0](x), y)
    assert torch.equal(loaded[0].trained.mask(), layer.trained.mask())
    dense: Any = merge_subset(nn.Sequential(layer))[0]
    assert type(dense) is type(DENSE[kind][0]())
    torch.testing.assert_close(dense(x), y)
    again = SubsetLinear.from_dense(dense, mask)
    torch.testing.assert_close(again(x), y)


def test_autocast_and_bfloat16() -> None:
    torch.manual_seed(0)
    layer = SubsetLinear.from_dense(nn.Linear(12, 8), torch.rand(8, 12) < 0.5)
    x = drawn(5, 12).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    grad = layer.trained.values.grad
    assert grad is not None
    assert grad.dtype == torch.float32
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


def shared() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, second, nn.ReLU())


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"2": torch.ones(4, 4, dtype=torch.bool)}, "'2', which is no dense linear layer"),
        ({"9": torch.ones(4, 4, dtype=torch.bool)}, "'9', which is no dense linear layer"),
        ({"0": torch.ones(4, 4, dtype=torch.bool)}, "'0', whose weight is shared"),
    ],
)
def test_refusals_of_models_change_nothing(masks: Any, words: str) -> None:
    model = shared()
    with pytest.raises(PatternError, match=words):
        train_subset(model, masks)
    assert type(model[0]) is nn.Linear  # type: ignore[index]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(4, 3, dtype=torch.bool), r"mask has shape \(4, 3\)"),
        (torch.zeros(4, 4, dtype=torch.bool), "0 entries that train"),
        (torch.ones(4, 4), "a bool mask"),
    ],
)
def test_refusals_of_masks(mask: Tensor, words: str) -> None:
    with pytest.raises(GossamerError, match=words):
        SubsetLinear.from_dense(nn.Linear(4, 4), mask)


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(PatternError, match="no SubsetLinear"):
        merge_subset(nn.Linear(2, 2))
