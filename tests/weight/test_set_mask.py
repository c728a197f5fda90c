"""Moving a mask: every form of a mask, other counts, and that a refusal changes nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer
from gossamer import SparseWeight, backend
from gossamer.masks import random_mask, random_structure
from gossamer.nn import SparseLinear
from gossamer.patterns import Unstructured
from support import oracle

SHAPE = (16, 320)


def trained(pattern: str, shape: tuple[int, int] = SHAPE) -> tuple[SparseWeight, torch.optim.AdamW]:
    """A weight with a gradient, and its optimizer with two moments."""
    weight = SparseWeight.from_dense(torch.randn(shape), pattern)
    optimizer = torch.optim.AdamW(weight.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        gossamer.spmm(torch.randn(5, shape[1]), weight).square().sum().backward()
        optimizer.step()
    return weight, optimizer


def tracked(weight: SparseWeight, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What follows the entries, as dense copies."""
    state = optimizer.state[weight.values]
    tensors = {
        "values": weight.values.detach(),
        "grad": weight.values.grad,
        "exp_avg": state["exp_avg"],
        "exp_avg_sq": state["exp_avg_sq"],
    }
    return {k: backend.scatter(t, weight.structure) for k, t in tensors.items()}


def everything(weight: SparseWeight, optimizer: torch.optim.Optimizer) -> list[bytes]:
    state = optimizer.state[weight.values].values()
    tensors = [weight.values.detach(), weight.values.grad, *weight.buffers(), *state]
    return [t.contiguous().numpy().tobytes() for t in tensors]


def coordinates(mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, cols = mask.nonzero().unbind(1)
    order = torch.randperm(len(rows))
    return rows[order], cols[order].int()


FORMS: dict[str, Callable[[Tensor, str], object]] = {
    "mask": lambda mask, _: mask,
    "structure": lambda mask, p: SparseWeight.from_dense(mask.float(), p, mask).structure,
    "weight": lambda mask, p: SparseWeight.from_dense(mask.double(), p, mask),
    "coordinates": lambda mask, _: coordinates(mask),
    "arrays": lambda mask, _: tuple(t.numpy() for t in coordinates(mask)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pattern", ["2:4", "90%", "75%:v4", "block 4x4 50%", "2:4:g2", "2:4:v16"])
def test_every_form_of_a_mask_is_the_same_move(pattern: str, form: str) -> None:
    weight, optimizer = trained(pattern)
    before, old = tracked(weight, optimizer), weight.mask()
    new = random_mask(SHAPE, pattern, 7)
    given_mask = FORMS[form](new, pattern)
    weight.set_mask(given_mask, optimizer)  # type: ignore[arg-type]
    assert torch.equal(weight.mask(), new)
    for name, tensor in tracked(weight, optimizer).items():
        assert torch.equal(tensor, before[name] * (old & new)), name
    if form in ("structure", "weight"):
        # The weight owns its positions.
        getattr(given_mask, "structure", given_mask).indices.zero_()
        assert torch.equal(weight.mask(), new)


COUNTS = [
    ("90%", "97%"),
    ("90%", "50%"),
    ("90%", "100%"),
    ("3:4", "2:4"),
    ("4:4", "1:4"),
    ("50%:v4", "90%:v4"),
    ("block 4x4 50%", "block 4x4 90%"),
    ("2:4", "90%"),
    ("50%:v8", "75%:v16"),
]


@pytest.mark.parametrize(("before", "after"), [*COUNTS, *(pair[::-1] for pair in COUNTS)])
def test_the_count_may_change_and_state_follows(before: str, after: str) -> None:
    weight, optimizer = trained(before)
    parameter, dense, old = weight.values, tracked(weight, optimizer), weight.mask()
    new = random_structure(SHAPE, after, 3)
    kept = backend.mask(new)
    weight.set_mask(new, optimizer, after)
    assert weight.values is parameter
    assert weight.nnz == new.nnz == parameter.grad.numel()
    assert str(weight.pattern) == after
    for name, tensor in tracked(weight, optimizer).items():
        assert torch.equal(tensor, dense[name] * (old & kept)), name
    # It is like a new weight: products, training, and a state dict that a new one loads.
    x = torch.randn(3, SHAPE[1], requires_grad=True)
    optimizer.zero_grad()
    gossamer.spmm(x, weight).sum().backward()
    full, ones = weight.to_dense().detach(), torch.ones(3, SHAPE[0])
    if full.any():
        magnitudes = oracle.spmm_t(ones, full.abs())
        oracle.assert_close(x.grad, oracle.spmm_t(ones, full), magnitudes)
    optimizer.step()
    fresh = SparseWeight(torch.zeros(new.nnz), random_structure(SHAPE, after, 9), after)
    fresh.load_state_dict(weight.state_dict())
    assert torch.equal(fresh.to_dense(), weight.to_dense())
    assert torch.equal(fresh.descriptor, weight.descriptor)


@given(st.lists(st.sampled_from(["0%", "30%", "90%", "99%", "100%"]), min_size=1, max_size=5))
@settings(max_examples=25)
def test_a_chain_of_masks_leaves_what_all_keep(patterns: list[str]) -> None:
    weight, optimizer = trained("50%")
    dense, common = tracked(weight, optimizer), weight.mask()
    for seed, pattern in enumerate(patterns):
        structure = random_structure(SHAPE, pattern, seed)
        weight.set_mask(structure, optimizer, pattern)
        common &= backend.mask(structure)
    for name, tensor in tracked(weight, optimizer).items():
        assert torch.equal(tensor, dense[name] * common), name


def test_a_pending_backward_pass_of_the_old_mask_fails() -> None:
    for pattern in (None, "95%"):
        weight, optimizer = trained("90%")
        loss = gossamer.spmm(torch.randn(2, SHAPE[1]), weight).sum()
        weight.set_mask(random_structure(SHAPE, pattern or "90%", 5), optimizer, pattern)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_graph_of_the_last_loss_may_live_on(dtype: torch.dtype) -> None:
    weight = SparseWeight.from_dense(torch.randn(SHAPE).to(dtype), "90%")
    x = torch.randn(2, SHAPE[1]).to(dtype)
    loss = gossamer.spmm(x, weight).sum()
    loss.backward()
    weight.set_mask(random_structure(SHAPE, "95%", 5), pattern="95%")
    again = gossamer.spmm(x, weight).sum()
    again.backward()
    assert weight.values.grad is not None
    assert weight.values.grad.shape == weight.values.shape
    assert weight.values.dtype == dtype
    assert loss.grad_fn is not None


def bad(case: str) -> tuple[object, str | None, str]:
    """A mask, its pattern, and words of the refusal, for a weight of 90 %."""
    good = random_structure(SHAPE, "90%", 3)
    rows, cols = coordinates(backend.mask(good))
    twice = cols.clone()
    twice[7], same = twice[4], rows.clone()
    same[7] = same[4]
    outside = cols.clone()
    outside[5] = 320
    cases = {
        "another count": (random_structure(SHAPE, "80%", 1), None, "keeps 1024 entries"),
        "another pattern": (random_structure(SHAPE, "90%:v4", 1), None, "vector=4"),
        "other panels": (random_structure(SHAPE, "90%:v4", 1), "90%:v4", "vector 4"),
        "another shape": (random_structure((32, 320), "90%", 1), None, "32x320"),
        "damaged": (good._replace(indices=good.indices.flip(0)), None, "out of range"),
        "no N:M": (good, "2:4", "not pattern 2:4"),
        "N:M that does not fit": (good, "2:7", "multiple of 7"),
        "twice": ((same, twice), None, rf"entries 4 and 7 are both at \[{rows[4]}, {cols[4]}\]"),
        "outside": ((rows, outside), None, rf"entry 5 is at \[{rows[5]}, 320\], outside"),
        "negative": ((rows - 20, cols), None, "entry 0 is at"),
        "lengths": ((rows[1:], cols), None, "511 were given for 512"),
        "too few coordinates": ((rows[1:], cols[1:]), None, "keeps 511 entries"),
        "floats": ((rows.float(), cols), None, "float32"),
        "three": ((rows, cols, cols), None, "mask is a tuple"),
        "a text": ("90%", None, "mask is a str"),
        "unknown": (good, "nonzeros", "nonzeros"),
    }
    return cases[case] if case else cases  # type: ignore[return-value]


@pytest.mark.parametrize("case", bad(""))
def test_a_refusal_changes_nothing(case: str) -> None:
    mask, pattern, words = bad(case)
    weight, optimizer = trained("90%")
    before = everything(weight, optimizer)
    with pytest.raises(gossamer.GossamerError, match=words):
        weight.set_mask(mask, optimizer, pattern)  # type: ignore[arg-type]
    assert everything(weight, optimizer) == before
    assert weight.pattern == Unstructured(0.9)


def test_a_double_pruned_weight_keeps_to_n_of_m() -> None:
    weight = SparseWeight.from_dense(torch.randn(8, 16), "2:4", backward="double_pruned")
    with pytest.raises(gossamer.PatternError, match="double_pruned"):
        weight.set_mask(random_structure((8, 16), "50%", 1), pattern="50%")
    weight.set_mask(random_structure((8, 16), "1:4", 1), pattern="1:4")
    assert weight.transposed is not None
    assert weight.transposed.perm.max() < weight.nnz == 32


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_sharded_values_move_and_keep_their_number() -> None:
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

    weight = SparseLinear(320, 16, pattern="90%").weight
    whole, structure = weight.values, random_structure(SHAPE, "90%", 3)
    with one_process():
        mesh = init_device_mesh("cpu", (1,))
        values = nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, [Shard(0)]))
        weight.values = values
        assert isinstance(weight.values, DTensor)
        before = weight.to_dense().detach()
        with pytest.raises(gossamer.DTypeError, match="before the model is sharded"):
            weight.set_mask(random_structure(SHAPE, "80%", 3), pattern="80%")
        assert torch.equal(weight.to_dense().detach(), before)
        weight.set_mask(structure)
        assert weight.values is values
        assert torch.equal(weight.to_dense().detach(), before * weight.mask())
    weight.values = nn.Parameter(whole.detach()[:100])
    with pytest.raises(gossamer.DTypeError, match="a part of 100 of the 512"):
        weight.set_mask(structure)
    weight.values = whole
    whole._fsdp_flattened = True  # what FullyShardedDataParallel writes on original parameters
    weight.set_mask(structure)
    with pytest.raises(gossamer.DTypeError, match="flat parameter"):
        weight.set_mask(random_structure(SHAPE, "80%", 3), pattern="80%")
