"""What else happens to a model with swapped networks: copies, checkpoints, processes, summaries."""

import copy
import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

import gossamer
from gossamer import SparseLinear, densify, sparsify, sparsify_activations
from support.activation_models import Written, networks, same_state
from support.transformer_models import MODELS, bert, llama_like, torch_layers

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "encoder", "decoder"])
def test_copies_pickles_and_states(name: str) -> None:
    model, run = MODELS[name]("relu")
    sparsify_activations(model.eval(), gate="float32")
    y = run(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other, _ = MODELS[name]("relu")
    other = sparsify_activations(other.eval(), gate="float32")
    other.load_state_dict(model.state_dict())
    expected = densify(copy.deepcopy(model))
    assert networks(model), "the copy alone is changed"
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False), other):
        torch.testing.assert_close(run(again), y, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.mul_(1.0)
        same_state(densify(again), expected)
        torch.testing.assert_close(run(again), y)


def test_a_decoder_layer_with_a_module_is_copied_whole() -> None:
    """torch's class takes ReLU where its state names no activation."""
    layer = nn.TransformerDecoderLayer(8, 2, 24, 0.0, nn.ReLU(), batch_first=True)
    x = torch.randn(2, 3, 8)
    y = layer(x, x)
    sparsify_activations(layer, gate="float32")
    torch.testing.assert_close(copy.deepcopy(layer)(x, x), y)
    assert type(densify(layer).activation) is nn.ReLU
    torch.testing.assert_close(layer(x, x), y)


def test_a_part_of_a_network_is_not_restored() -> None:
    model, _ = bert("relu")
    sparsify_activations(model)
    with pytest.raises(gossamer.PatternError, match="'dense' but without the place of its last"):
        densify(model.encoder.layer[0].intermediate)
    densify(model.encoder.layer[0])
    assert len(networks(model)) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    layer = sparsify_activations(Written(), gate="float32")
    x = torch.randn(6, 8)
    grads = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        leaves = [x.clone().requires_grad_(), *layer.parameters()]
        layer.zero_grad()
        call(leaves[0]).square().sum().backward()
        grads.append([leaf.grad.clone() for leaf in leaves])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_transformers_own_checkpointing_and_autocast() -> None:
    model, run = llama_like("Llama", "relu")
    sparsify_activations(model, gate="float32").train()
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        run(model).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    dense = densify(copy.deepcopy(model))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run(model), run(dense), rtol=0.05, atol=0.02)


def test_torch_encoder_in_inference() -> None:
    model, run = torch_layers("Encoder", "relu")
    model.eval()
    with torch.no_grad():
        expected = run(model)
        sparsify_activations(model, gate="float32")
        torch.testing.assert_close(run(model), expected)
        assert all(layer.live_share > 0 for layer in networks(model).values())
        torch.testing.assert_close(run(densify(model)), expected)


def test_sparse_weights_beside_sparse_activations() -> None:
    model, run = llama_like("Llama", "relu")
    sparsify_activations(model, gate="float32")
    with pytest.warns(
        UserWarning, match=r"model\.layers\.0\.mlp, model\.layers\.1\.mlp \(Act"
    ) as w:
        sparsify(model, "2:4:v4", exclude="lm_head")
    assert len(w) == 1
    assert str(w[0].message).count("ActivationSparseFFN") == 1
    assert len(networks(model)) == 2
    sparse = [n for n, m in model.named_modules() if isinstance(m, SparseLinear)]
    assert len(sparse) == 8
    assert all("self_attn" in name for name in sparse)
    y = run(model)
    y.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(llama_like("Llama", "relu")[0], "2:4", include="*.self_attn")
    assert not networks(densify(model))
    torch.testing.assert_close(run(model), y)


def test_summary_shows_the_live_share() -> None:
    model = nn.Sequential(sparsify_activations(Written(), gate="float32"), nn.Linear(8, 8))
    first, last = gossamer.summary(model).layers
    assert first.live_share != first.live_share
    assert (first.form, last.form, last.live_share) == (None, None, None)
    assert " activations " in str(gossamer.summary(model))
    model(torch.randn(50, 8))
    first, last = gossamer.summary(model).layers
    assert first.kind == "ActivationSparseFFN"
    assert first.form == "float32"
    assert first.live_share == model[0].live_share
    assert first.values == sum(p.nbytes for p in model[0].parameters())
    assert f"activations, {100 * first.live_share:.3g} % live, float32" in str(
        gossamer.summary(model)
    )


def test_a_compiled_model_computes_the_same() -> None:
    torch.compiler.reset()
    model = nn.Sequential(nn.LayerNorm(8), Written())
    sparsify_activations(model, gate="float32")
    x = torch.randn(6, 8)
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        y = call(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def _shard(rank: int) -> torch.Tensor:
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(rank))


def _start() -> nn.Module:
    torch.manual_seed(0)
    return sparsify_activations(nn.Sequential(Written(), Written()), gate="float32")


def _rank(rank: int, address: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = _start()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(_shard(rank)).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{out}/{rank}")
    # While both processes live: a reducer that outlives its group can wait for ever.
    del wrapped
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.process
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    mp.spawn(_rank, (f"file://{tmp_path}/meet", str(tmp_path)), nprocs=2)
    model = _start()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.cat([_shard(0), _shard(1)])).square().mean().backward()
        optimizer.step()
    for rank in range(2):
        for name, tensor in torch.load(tmp_path / str(rank)).items():
            torch.testing.assert_close(tensor, model.state_dict()[name])
