"""What processes do in the tests of several ranks: many checks in one start."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gossamer
from gossamer.distributed import broadcast_structure, check_same_structure
from gossamer.distributed.tensor_parallel import SparseColwiseParallel, SparseRowwiseParallel
from gossamer.masks import random_structure
from gossamer.nn import ActivationSparseFFN, SparseLinear
from gossamer.recipes import GMP, SET, STE, RigL, SLoPe
from support.ranks import error_of


def network(pattern: str = "2:4:v4", seed: int = 0, **kwargs: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseLinear(32, 64, pattern=pattern, **kwargs),
        nn.ReLU(),
        SparseLinear(64, 16, pattern=pattern, **kwargs),
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 32, generator=generator), torch.randn(6, 16, generator=generator)


def loss_of(model: nn.Module, seed: int) -> Tensor:
    x, y = batch(seed)
    return nn.functional.mse_loss(model(x), y)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model, gathered."""
    return {
        name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()
        for name, t in model.state_dict().items()
    }


# ---- masks that differ ---------------------------------------------------------------------------
def different_masks(rank: int) -> dict[str, str]:
    """Return what each process sees when masks differ."""
    found: dict[str, str] = {}

    same = network()
    check_same_structure(same)
    found["same"] = "passed"

    other = network()
    if rank:
        other[2].weight.set_mask(random_structure((16, 64), "2:4:v4", 5))
    found["second layer"] = error_of(check_same_structure, other)
    fully_shard(other)
    found["sharded"] = error_of(check_same_structure, other)
    broadcast_structure(other)
    check_same_structure(other)
    found["loss"] = str(bool(torch.isfinite(loss_of(other, rank))))

    found["patterns"] = error_of(broadcast_structure, network("1:4:v4" if rank else "2:4:v4"))

    # A recipe asks when it is attached, and after a change of a mask.
    recipe = SET("75%", every=1, end_share=1.0, distribution="uniform")
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if rank:
        model[0].weight.set_mask(random_structure((64, 32), "75%", 9), pattern=model[0].pattern)
    found["attach"] = error_of(recipe.attach, wrapped, optimizer, 10)
    found["detached"] = str(recipe.layers)
    broadcast_structure(model)
    recipe.attach(wrapped, optimizer, 10)
    for t in range(2):
        optimizer.zero_grad()
        loss_of(wrapped, t + rank).backward()
        if t == 1 and rank:
            model[2].weight.set_mask(
                random_structure((16, 64), model[2].pattern, 7), optimizer, model[2].pattern
            )
        found[f"step {t}"] = error_of(optimizer.step)

    # DistributedDataParallel has written the first process's indices over those of the others.
    recipe = RigL("2:4:v4", every=1)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 64)))
    if rank:
        model[0].weight.set_mask(random_structure((64, 32), "2:4:v4", 9))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found["overwritten"] = error_of(recipe.attach, wrapped, optimizer, 10)
    broadcast_structure(model)
    found["mended"] = error_of(recipe.attach, wrapped, optimizer, 10)
    return found


# ---- fully_shard ---------------------------------------------------------------------------------
def shards(rank: int) -> dict[str, Any]:
    """Return what happens to sharded weights beside an ordinary training."""
    found: dict[str, Any] = {}
    found["bytes"] = {name: bytes_of(name) for name in ("2:4:v4", "1:8:v4", "75%", "dense")}

    # A mask that moves by hand, of weights whose rows have different counts.
    for pattern in ("75%", "block 4x4 50%"):
        model = network(pattern)
        single = network(pattern)
        for layer in (0, 2):
            fully_shard(model[layer])
        fully_shard(model)
        optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, single)]
        for t in range(2):
            loss_of(model, 2 * t + rank).backward()
            for other in range(2):
                (loss_of(single, 2 * t + other) / 2).backward()
            if t == 1:  # with a gradient and a state
                for m, o in zip((model, single), optimizers, strict=True):
                    m[0].weight.set_mask(random_structure((64, 32), m[0].pattern, 3), o)
            for o in optimizers:
                o.step()
                o.zero_grad()
        found[pattern] = (whole(model), whole(single))

    # Between the passes FSDP has gathered the values of the root.
    model = fully_shard(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = whole(model)
    loss = loss_of(model, rank)
    structure = random_structure((64, 32), "2:4:v4", 3)
    found["gathered"] = error_of(model[0].weight.set_mask, structure, optimizer)
    loss.backward()
    after = whole(model)
    found["unchanged"] = all(torch.equal(before[n], after[n]) for n in before)
    found["other count"] = error_of(
        model[0].weight.set_mask, random_structure((64, 32), "1:4:v4", 3), optimizer, "1:4:v4"
    )
    found["outside"] = error_of(model[0], batch(0)[0])  # not through the root: not gathered

    # Recipes that read dense weights between the steps.
    for recipe in (STE("2:4"), GMP("75%"), SLoPe("2:4", adapter_rank=2)):
        model = recipe.prepare(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)))
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found[type(recipe).__name__] = error_of(recipe.attach, model, optimizer, 100)

    # Double-pruned transposes follow from all values.
    pair = []
    for parts in ([rank], [0, 1]):
        recipe = SLoPe("2:4", adapter_rank=0, every=1)
        torch.manual_seed(0)
        model = recipe.prepare(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)))
        if len(parts) == 1:
            fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recipe.attach(model, optimizer, 100)
        for t in range(3):
            optimizer.zero_grad()
            for part in parts:
                (loss_of(model, 2 * t + part) / len(parts)).backward()
            optimizer.step()
        pair.append(whole(model))
    found["double pruned"] = tuple(pair)

    # Micro-batches whose gradients are not reduced before the last: RigL sees them all.
    models = []
    for sync in (False, True):
        recipe = RigL("2:4:v4", every=1, end_share=1.0)
        torch.manual_seed(0)
        model = recipe.prepare(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)))
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recipe.attach(model, optimizer, 10)
        for t in range(2):
            optimizer.zero_grad()
            for part in range(2):
                model.set_requires_gradient_sync(sync or part == 1)
                (loss_of(model, 4 * t + 2 * part + rank) / 2).backward()
            pairs = len(recipe.captures["0"].coming)
            optimizer.step()
        models.append((pairs, whole(model)))
    found["accumulated"] = models

    # A masked layer, and a network with sparse activations.
    torch.manual_seed(0)
    masked = [gossamer.nn.MaskedLinear.from_dense(nn.Linear(32, 16), "2:4") for _ in range(2)]
    masked[1].load_state_dict(masked[0].state_dict())
    fully_shard(masked[0])
    loss_of(masked[0], rank).backward()
    for other in range(2):
        (loss_of(masked[1], other) / 2).backward()
    found["masked"] = (masked[0].weight.grad.full_tensor(), masked[1].weight.grad)
    found["activations"] = [
        pair
        for options in (
            {"gated": False},
            {"gate": "float32", "bias": True},
            {"gate": "int8", "bias": True},
            {"gate": "float32", "pattern": "2:4"},
        )
        for pair in network_pairs(rank, options)
    ]
    return found


def network_pairs(rank: int, options: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Gradients and a decoded call of a sharded network, each beside that of one process."""
    torch.manual_seed(0)
    networks = [ActivationSparseFFN(32, 64, **options) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    fully_shard(networks[0])
    networks[0](batch(rank)[0]).pow(2).mean().backward()
    for other in range(2):
        (networks[1](batch(other)[0]).pow(2).mean() / 2).backward()
    pairs = [
        (a.grad.full_tensor(), b.grad)
        for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True)
    ]
    with torch.no_grad():
        few = batch(0)[0][:3]
        again = [(networks[0].eval()(few), networks[1].eval()(few)) for _ in range(2)]
    return pairs + again


def bytes_of(pattern: str) -> int:
    """Return the bytes that the collectives of one step hand over, counted from their tensors."""
    if pattern == "dense":
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(
            nn.Linear(32, 64, bias=False), nn.ReLU(), nn.Linear(64, 16, bias=False)
        )
    else:
        model = network(pattern, bias=False)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    with Counted() as counted:
        loss_of(model, 0).backward()
    return counted.total


class Counted(TorchDispatchMode):
    """Adds up the bytes of the larger tensor of each collective: what all processes hold."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [a for a in tree_leaves(args) if isinstance(a, Tensor)]
            self.total += max(t.nbytes for t in tensors)
        return func(*args, **(kwargs or {}))


# ---- tensor parallelism --------------------------------------------------------------------------
def split(rank: int) -> dict[str, Any]:
    """Return outputs, gradients and trained weights of split layers beside whole ones."""
    mesh = init_device_mesh("cpu", (2,))
    plan = {"0": SparseColwiseParallel(), "2": SparseRowwiseParallel()}
    found: dict[str, Any] = {}
    for pattern, backward in (("2:4:v4", "exact"), ("2:4", "double_pruned"), ("75%", "exact")):
        whole_model = network(pattern, backward=backward)
        parts = network(pattern, backward=backward)
        if rank:  # the values are those of the first process
            parts[0].weight.values.data.zero_()
        parallelize_module(parts, mesh, plan)
        results = []
        for model in (whole_model, parts):
            x = batch(0)[0].requires_grad_()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(2):
                optimizer.zero_grad()
                y = model(x)
                nn.functional.mse_loss(y, batch(0)[1]).backward()
                optimizer.step()
            nnz = [model[i].weight.nnz for i in (0, 2)]
            dense = gossamer.densify(model)
            results.append([y.detach(), x.grad, *(p.detach() for p in dense.parameters())])
            found[f"{pattern} nnz"] = nnz
        found[pattern] = results
    for pattern in ("2:4:v32", "block 4x4 50%"):
        layer = nn.Sequential(SparseLinear(32, 32, pattern=pattern))
        found[f"refused {pattern}"] = error_of(
            parallelize_module, layer, mesh, {"0": SparseColwiseParallel()}
        )
    found["dense"] = error_of(
        parallelize_module, nn.Sequential(nn.Linear(8, 8)), mesh, {"0": SparseRowwiseParallel()}
    )
    x = distribute_tensor(batch(0)[0], mesh, [Replicate()])
    found["DTensor"] = error_of(network()[0], x)
    return found


# ---- gossamer.save of shards ---------------------------------------------------------------------
def saved(rank: int, folder: str) -> dict[str, Any]:
    """Return what comes of saving a sharded model, and of loading into one."""
    found: dict[str, Any] = {}
    model = nn.Sequential(*network("75%"), nn.Linear(16, 4))
    single = copy.deepcopy(model)
    for layer in (0, 2, 3):
        fully_shard(model[layer])
    fully_shard(model)
    gossamer.save(model, folder)
    dense = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16), nn.Linear(16, 4))
    loaded = gossamer.load(folder, dense)
    found["loaded"] = (whole(loaded), whole(single))
    found["kind"] = type(loaded[0]).__name__
    found["into shards"] = error_of(gossamer.load, folder, model)
    file = Path(folder, "file")
    if rank == 0:
        file.touch()
    found["no folder"] = error_of(gossamer.save, model, str(file / "below"))
    return found
