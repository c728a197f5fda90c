"""shrink(): the smaller model computes what the model computes, and really is smaller."""

import copy
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from gossamer.pruning import HeadAttention, ShrinkReport, shrink
from gossamer.train.model import GPT, GPTConfig
from support.networks import NETWORKS, Residual

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def prune_at_random(model: nn.Module, seed: int) -> None:
    """Zero rows with and without their biases, columns, and channels of norms."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int, share: float = 0.3) -> Tensor:
        return torch.rand(count, generator=generator) < share

    for module in model.modules():
        for name, tensor in chain(
            module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        ):
            if tensor.is_floating_point() and tensor.dim():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
                if name == "running_var":
                    tensor.abs_().add_(0.1)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
            rows = some(len(module.weight))
            module.weight[rows] = 0
            if module.weight.dim() > 1 and module.weight.shape[1] > 1:
                module.weight[:, some(module.weight.shape[1], 0.2)] = 0
            if module.bias is not None:
                module.bias[rows & some(len(rows), 0.6)] = 0


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def same(model: nn.Module, smaller: nn.Module, x: Tensor) -> None:
    expected, found = (copy.deepcopy(m).eval()(x) for m in (model, smaller))
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_the_smaller_model_computes_the_same(name: str, seed: int) -> None:
    make, shape = NETWORKS[name]
    model = make()
    prune_at_random(model, seed)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    smaller, report = shrink(model, torch.randn(shape), report=True)
    assert isinstance(report, ShrinkReport)

    for batch in (1, 5):
        same(model, smaller, torch.randn(batch, *shape[1:]))
    assert parameters(smaller) < 0.75 * parameters(model)
    assert report.parameters == (parameters(model), parameters(smaller))
    assert report.flops[1] < report.flops[0]
    assert type(smaller) is type(model)
    assert smaller.training
    assert set(before) <= set(smaller.state_dict())  # a bias may have come
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])

    optimizer = torch.optim.SGD(smaller.parameters(), 0.1)
    first = [p.detach().clone() for p in smaller.parameters()]
    smaller(torch.randn(4, *shape[1:])).square().mean().backward()
    assert all(p.grad is not None for p in smaller.parameters())
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(first, smaller.parameters(), strict=True))


def test_sizes_of_a_residual_network() -> None:
    """A channel of the stream goes only when both branches, and the skip, are zero in it."""
    block = Residual(6, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU(), block, nn.Conv2d(6, 2, 1)
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
        model[0].weight[:3] = 0  # the stream comes in as zero in 0, 1, 2
        for i in (1, 2, 3):  # and the block adds zero in 1, 2, 3
            block.bn2.weight[i] = block.bn2.bias[i] = 0
        block.conv1.weight[4:] = 0
        block.bn1.bias[4:] = -1  # the ReLU makes this zero
    smaller = shrink(model, torch.randn(1, 3, 6, 6))
    assert smaller[0].weight.shape == (4, 3, 3, 3)
    assert smaller[2].conv1.weight.shape == (4, 4, 3, 3)
    assert smaller[2].conv2.weight.shape == (4, 4, 3, 3)
    assert smaller[2].bn2.num_features == smaller[0].out_channels == 4
    assert smaller[3].weight.shape == (2, 4, 1, 1)
    same(model, smaller, torch.randn(2, 3, 6, 6))


def test_what_nothing_reads_goes_and_so_does_what_feeds_it() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 2))
    with torch.no_grad():
        model[4].weight[:, :4] = 0  # neurons 0 to 3 of the second layer are not read
        model[2].weight[4:, :2] = 0  # the others do not read 0 and 1 of the first
    smaller, report = shrink(model, torch.randn(1, 5), report=True)
    assert [smaller[i].weight.shape for i in (0, 2, 4)] == [(4, 5), (3, 4), (2, 3)]
    assert report.layers[1].before == (7, 6)
    assert report.layers[1].after == (3, 4)
    assert report.layers[1].flops == (2 * 7 * 6, 2 * 3 * 4)
    assert report.flops == (2 * (30 + 42 + 14), 2 * (20 + 12 + 6))
    assert not report.notes
    assert "101 -> 47" in str(report)
    same(model, smaller, torch.randn(3, 5))


@pytest.mark.parametrize("bias", [True, False])
def test_constants_go_into_the_next_bias(bias: bool) -> None:
    """A sigmoid makes one half of zero; a layer without a bias gets one."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=bias))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[0] = 0
    smaller = shrink(model, torch.randn(1, 4))
    assert smaller[2].weight.shape == (3, 4)
    assert smaller[2].bias is not None
    same(model, smaller, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"padding": 1}, 5),  # zeros around a constant are not the constant
        ({"padding": "same"}, 5),
        ({"padding": 0}, 4),
        ({"padding": "valid"}, 4),
        ({"padding": 1, "padding_mode": "reflect"}, 4),
    ],
)
def test_constants_before_padding_stay(settings: dict[str, object], kept: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3, **settings)
    )
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[1].bias[:] = torch.tensor([1.5, -1.5, 0, 0, 0, 0])  # constants 1.5 and, by ReLU, 0
        model[0].bias[:2] = 0
    smaller = shrink(model, torch.randn(1, 2, 5, 5))
    assert smaller[0].out_channels == smaller[1].num_features == smaller[3].in_channels == kept
    same(model, smaller, torch.randn(2, 2, 5, 5))


def test_constants_before_transposed_convolutions_stay() -> None:
    """Its border reads fewer entries; a channel of zeros goes."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, 2))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = torch.tensor([1.5, -1.5])
    smaller = shrink(model, torch.randn(1, 1, 4, 4))
    assert smaller[0].out_channels == smaller[2].in_channels == 3
    assert smaller[2].weight.shape == (3, 2, 3, 3)
    same(model, smaller, torch.randn(2, 1, 5, 5))


def test_one_channel_of_a_dead_layer_stays() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[:] = 0
    smaller = shrink(model, torch.randn(1, 1, 4, 4))
    assert smaller[0].out_channels == 1
    same(model, smaller, torch.randn(2, 1, 4, 4))


def test_heads_and_neurons_of_the_gpt() -> None:
    model = GPT(GPTConfig(vocabulary=40, context=12, width=24, depth=2, heads=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
        first, second = model.blocks
        first.attention.out.weight[:, 6:12] = 0  # head 1 is not read
        first.attention.qkv.weight[48 + 18 :] = 0  # head 3 has no values
        second.mlp.up.weight[10:60] = 0
        second.mlp.down.weight[:, 70:80] = 0
    tokens = torch.randint(0, 40, (2, 9))
    smaller, report = shrink(model, tokens, report=True)
    assert isinstance(smaller, GPT)
    attention = smaller.blocks[0].attention
    assert isinstance(attention, HeadAttention)
    assert attention.heads == 2
    assert attention.qkv.weight.shape == (36, 24)
    assert smaller.blocks[1].mlp.up.weight.shape == (36, 24)
    assert type(smaller.blocks[1].attention) is type(second.attention)  # nothing to remove
    assert smaller.state_dict().keys() == model.state_dict().keys()
    assert report.parameters[0] - report.parameters[1] == 24 * (36 + 12 + 2 * 60)
    for length in (1, 12):
        same(model, smaller, torch.randint(0, 40, (3, length)))
    before = smaller.loss(tokens[:, :-1], tokens[:, 1:]).item()
    optimizer = torch.optim.AdamW(smaller.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        smaller.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    assert smaller.loss(tokens[:, :-1], tokens[:, 1:]).item() < before
    again = shrink(smaller, tokens)
    assert parameters(again) == parameters(smaller)


@pytest.mark.parametrize("causal", [True, False])
def test_the_value_bias_of_a_dead_head_is_kept(causal: bool) -> None:
    """Softmax sums to one: a head whose value rows are zero gives its value bias everywhere."""
    attention = HeadAttention(nn.Linear(8, 36), nn.Linear(12, 8, bias=False), 3, causal)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), attention, nn.Linear(8, 2))
    with torch.no_grad():
        attention.qkv.weight[24 + 4 : 24 + 8] = 0
    smaller = shrink(model, torch.randn(1, 1, 4))  # one position does not show what is causal
    assert smaller[2].heads == 2
    assert smaller[2].causal is causal
    assert smaller[2].out.bias is not None
    same(model, smaller, torch.randn(2, 7, 4))


def test_experts_are_left_alone_but_their_neurons_are_not() -> None:
    model = GPT(GPTConfig(40, 12, 24, depth=1, heads=2, experts=2, router="topk"))
    with torch.no_grad():
        model.blocks[0].mlp.experts[1].up.weight[:50] = 0
    tokens = torch.randint(0, 40, (2, 9))
    smaller = shrink(model, tokens)
    assert smaller.blocks[0].mlp.experts[1].up.out_features == 46
    same(model, smaller, tokens)
