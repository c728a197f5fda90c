"""Integer buffers that were written over after a mask was set: passed, put right, or refused."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gossamer
from gossamer import SparseLinear, StructureError
from gossamer.masks import random_mask
from gossamer.nn import MaskedLinear
from support import oracle

PATTERNS = [*oracle.PATTERNS, "2:4:v16", "75%:v32"]
Layer = SparseLinear | MaskedLinear


def sizes(pattern: str) -> tuple[int, int]:
    """Enough rows that columns repeat: an average with another mask shows by that."""
    rows, cols = oracle.sizes(pattern)
    return 4 * rows, cols


def sparse(pattern: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    rows, cols = sizes(pattern)
    layer = SparseLinear(cols, rows, pattern=pattern)
    return nn.Sequential(nn.Identity(), nn.Sequential(layer))


def masked(pattern: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    rows, cols = sizes(pattern)
    layer = MaskedLinear.from_dense(
        nn.Linear(cols, rows), pattern, reselect_each_forward=False, gradient="kept"
    )
    return nn.Sequential(nn.Identity(), nn.Sequential(layer))


MODELS = {"sparse": sparse, "masked": masked}


def owner(model: nn.Sequential) -> nn.Module:
    """The module with the buffers."""
    layer = model[1][0]
    return layer.weight if isinstance(layer, SparseLinear) else layer


def source(model: nn.Sequential) -> Tensor:
    return torch.randn(3, model[1][0].in_features, generator=torch.Generator().manual_seed(1))


def by_state_dict(average: nn.Module, model: nn.Module, decay: float) -> nn.Module:
    with torch.no_grad():
        for mine, theirs in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            mine.copy_(decay * mine + (1 - decay) * theirs)
    return average


def by_averaged_model(average: nn.Module, model: nn.Module, decay: float) -> nn.Module:
    wrapped = AveragedModel(average, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(2):
        wrapped.update_parameters(model)
    return wrapped.module


AVERAGES = [by_state_dict, by_averaged_model]


@pytest.mark.parametrize("decay", [0.9999, 0.7, 0.5])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", MODELS)
def test_an_average_with_itself_leaves_the_mask(
    kind: str, pattern: str, average: Callable[..., nn.Module], decay: float
) -> None:
    model = MODELS[kind](pattern)
    x = source(model)
    mask, expected = owner(model).mask(), model(x)
    averaged = copy.deepcopy(model)
    averaged = average(average(averaged, model, decay), model, decay)
    torch.testing.assert_close(averaged(x), expected)
    assert torch.equal(owner(averaged).mask(), mask)
    x.requires_grad_()
    got, wanted = (torch.autograd.grad(m(x).sum(), x)[0] for m in (averaged, model))
    torch.testing.assert_close(got, wanted)
    # The whole state is that of the layer again, and can be loaded.
    other = MODELS[kind](pattern, seed=9)
    other.load_state_dict(averaged.state_dict())
    torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("decay", [0.9999, 0.5])
@pytest.mark.parametrize("kind", MODELS)
def test_an_average_with_another_mask_is_refused_by_name(
    kind: str, pattern: str, average: Callable[..., nn.Module], decay: float
) -> None:
    model, other = MODELS[kind](pattern), MODELS[kind](pattern, seed=1)
    if owner(model).indices.shape != owner(other).indices.shape:
        pytest.skip("an average of tensors of two shapes is refused by torch")
    twin = copy.deepcopy(model)
    twin(source(twin))  # an intact twin must not hide it
    averaged = average(model, other, decay)
    with pytest.raises(StructureError, match=r"1\.0.*written over.*load a state dict"):
        averaged(source(model))
    del twin


def other_mask(module: nn.Module) -> None:
    positions = random_mask(tuple(module.mask().shape), module.pattern, seed=77)
    fresh = gossamer.SparseWeight.from_dense(positions.float(), module.pattern, mask=positions)
    module.indices.copy_(fresh.indices)


def new_tensor(module: nn.Module) -> None:
    module.indices = torch.zeros_like(module.indices)


def one_byte(module: nn.Module) -> None:
    module.indices[len(module.indices) // 2] += 1


def pointers(module: nn.Module) -> None:
    if module.indptr is None:
        pytest.skip("N:M has no pointers")
    module.indptr[1] += 1


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "all bytes": lambda module: module.indices.fill_(255),
    "zeros": lambda module: module.indices.zero_(),
    "one byte": one_byte,
    "another mask": other_mask,
    "through a state dict": lambda module: module.state_dict()["indices"].fill_(3),
    "a new tensor": new_tensor,
    "pointers": pointers,
    "to_empty": lambda module: [
        t.fill_(not t.is_floating_point()) for t in module.to_empty(device="cpu").buffers()
    ],
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", MODELS)
def test_what_was_written_over_is_refused_at_every_use(kind: str, pattern: str, write: str) -> None:
    model = MODELS[kind](pattern)
    layer, module = model[1][0], owner(model)
    x, sound = source(model), copy.deepcopy(model.state_dict())
    before = model(x)
    with torch.no_grad():
        WRITES[write](module)
    words = f"the indices of .*{type(module).__name__}.* were written over"
    uses: list[Callable[[], object]] = [
        lambda: model(x),
        lambda: model(x),  # the second time too
        lambda: copy.deepcopy(model)(x),
        lambda: pickle.loads(pickle.dumps(model))(x),  # noqa: S301
        lambda: layer.mask(),
        lambda: layer.used_weight(),
        lambda: layer.to_sparse().mask() if kind == "masked" else layer.to_dense(),
        lambda: gossamer.densify(copy.deepcopy(model)),
    ]
    if kind == "sparse":
        uses += [
            lambda: gossamer.spmm_t(before.detach(), module),
            lambda: module.set_mask(random_mask(tuple(module.shape), pattern, seed=3)),
        ]
    for use in uses:
        with pytest.raises(StructureError, match=words):
            use()
    model.load_state_dict(sound)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("pattern", ["2:4", "90%", "3:5"])
@pytest.mark.parametrize("name", ["t_indices", "t_indptr", "t_perm"])
def test_a_transpose_is_built_again(pattern: str, name: str) -> None:
    model = sparse(pattern)
    x = source(model).requires_grad_()
    (wanted,) = torch.autograd.grad(model(x).sum(), x)
    for _ in range(2):
        owner(model)._buffers[name].fill_(1)
        (found,) = torch.autograd.grad(model(x).sum(), x)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["t_indices", "t_indptr", "t_perm"])
def test_a_chosen_transpose_is_refused(name: str) -> None:
    layer = SparseLinear(12, 8, pattern="2:4", backward="double_pruned")
    layer.weight._buffers[name].zero_()
    with pytest.raises(StructureError, match=r"t_indices of .*SparseWeight.*written over"):
        layer(torch.randn(3, 12))
    layer.weight.refresh_transpose()
    layer(torch.randn(3, 12, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("kind", MODELS)
def test_the_same_bytes_pass_without_a_twin(kind: str) -> None:
    model = MODELS[kind]("2:4")
    x, indices = source(model), owner(model).indices
    before = model(x)
    indices.copy_(indices.clone())
    assert torch.equal(model(x), before)
    owner(model).indices = indices.clone()
    assert torch.equal(model(x), before)
    with pytest.raises(StructureError):
        by_state_dict(model, MODELS[kind]("2:4", 5), 0.5)(x)


def test_a_mask_that_is_selected_again_may_be_written_over() -> None:
    layer = MaskedLinear.from_dense(nn.Linear(12, 8), "2:4")
    x = torch.randn(3, 12)
    before = layer(x)
    layer.indices.fill_(255)
    assert torch.equal(layer(x), before)
    fixed = copy.deepcopy(layer)
    fixed.reselect_each_forward = False
    assert torch.equal(fixed(x), before)


def test_tensors_of_inference_mode_count_no_writes_and_work() -> None:
    with torch.inference_mode():
        model = sparse("2:4")
        first = model(source(model))
        assert torch.equal(model(source(model)), first)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backward", ["exact", "double_pruned"])
def test_a_layer_without_memory_is_drawn_anew(pattern: str, backward: str) -> None:
    if backward != "exact" and not pattern.startswith(("2:4", "3:5", "1:8")):
        pytest.skip("needs groups of rows")
    rows, cols = oracle.sizes(pattern)
    model = nn.Sequential(
        SparseLinear(cols, rows, pattern=pattern, device="meta", backward=backward)
    )
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(7)  # what freed memory may hold
    for module in model.modules():  # as FSDP does
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    layer = model[0]
    gossamer.backend.validate(layer.structure, layer.nnz)
    gossamer.masks.check_mask(layer.mask(), layer.pattern)
    x = torch.randn(3, cols, requires_grad=True)
    y = model(x)
    torch.testing.assert_close(y, layer.to_dense()(x))
    y.sum().backward()
    other = SparseLinear(cols, rows, pattern=pattern, backward=backward)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)


@pytest.mark.parametrize("kind", MODELS)
def test_an_unharmed_layer_keeps_its_mask_at_a_reset(kind: str) -> None:
    layer = SparseLinear(12, 8, pattern="90%")
    mask = layer.mask()
    layer.reset_parameters()
    assert torch.equal(layer.mask(), mask)


@pytest.mark.slow
def test_compiled_code_refuses_too() -> None:
    torch.compiler.reset()
    model = sparse("2:4")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = source(model)
    compiled(x)
    owner(model).indices.zero_()
    with pytest.raises(StructureError, match=r"1\.0\.weight.*written over"):
        compiled(x)
