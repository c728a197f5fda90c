"""Models of every kind of layer, with dense ones of the same class, for tests of saving."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from gossamer import recipes
from gossamer.io.files import read_file, write_file


def dense(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 16))


def sparse(seed: int = 0, pattern: str = "2:4", width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return gossamer.sparsify(dense(width), pattern)


def bits(model: nn.Module) -> dict[str, Any]:
    """All that a load may change, the buffers that are not saved too."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, Any] = {name: (id(t), t.detach().clone()) for name, t in tensors.items()}
    return found | {"": str(model)}


def unchanged(before: dict[str, Any], model: nn.Module) -> bool:
    after = bits(model)
    return before.keys() == after.keys() and all(
        a == after[n] if n == "" else a[0] == after[n][0] and torch.equal(a[1], after[n][1])
        for n, a in before.items()
    )


def x() -> Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(3))


def prepared(name: str, pattern: str = "2:4", steps: int = 6, **options: Any) -> nn.Module:
    """A model that a recipe has trained for some steps, so that its buffers are not as new."""
    torch.manual_seed(1)
    recipe = recipes.make(name, pattern, **options)
    model = recipe.prepare(dense())
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=1e-3)
    recipe.attach(model, optimizer, total_steps=20)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x()).square().sum().backward()
        optimizer.step()
    recipe.detach()
    return model


def adapted() -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(
        gossamer.nn.AdaptedLinear(16, 16, pattern="2:4", backward="double_pruned")
    )
    model[0].insert(2)
    nn.init.normal_(model[0].adapter.right)
    return model


def tied_dense() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    model[2].bias = model[0].bias
    return model


def tied() -> nn.Module:
    return gossamer.sparsify(tied_dense(), "2:4", exclude="2")


def frozen() -> nn.Module:
    model = sparse()
    model[0].weight.values.requires_grad_(False)
    return model


def masked() -> nn.Module:
    layer = gossamer.nn.MaskedLinear.from_dense(
        nn.Linear(16, 16), "block 4x4 50%", reselect_each_forward=False, gradient="kept",
        target=gossamer.Unstructured(0.123456789012345),
    )  # fmt: skip
    return nn.Sequential(layer)


def rectifier() -> nn.Module:
    return gossamer.sparsify_activations(dense_rectifier(), gate="float32")


def dense_rectifier() -> nn.Module:
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    return nn.Sequential(net, nn.Linear(16, 16))


RECIPES = (
    "ste",
    "srste",
    "slope",
    "fst",
    "sste",
    "bimask",
    "autosparse",
    "set",
    "gmp",
    "gmp-sparse",
)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "2:4": sparse,
    "50%": lambda: sparse(pattern="50%"),
    "2:4:v8": lambda: sparse(pattern="2:4:v8"),
    "block": lambda: sparse(pattern="block 4x4 75%"),
    "adapted": adapted,
    "tied": tied,
    "masked": masked,
    "factors": lambda: prepared("sparse-ift-factorized", "50%"),
    "parallel": lambda: prepared("sparse-ift-parallel", "50%"),
    "doped": lambda: prepared("sparse-ift-doped", "50%"),
    **{
        name: lambda n=name: prepared(n, "50%" if n in ("set", "gmp", "gmp-sparse") else "2:4")
        for name in RECIPES
    },
}


def dense_of(model: nn.Module) -> nn.Module:
    if len(model) == 4:
        return dense()
    return tied_dense() if len(model) == 3 else nn.Sequential(*(nn.Linear(16, 16) for _ in model))


def built(width: int, pattern: str = "2:4") -> nn.Module:
    return sparse(pattern=pattern, width=width)


def damage_description(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description, and write a checksum that fits it."""
    file = folder / "model.safetensors"
    tensors, metadata = read_file(file, "", "")
    description = json.loads(metadata["gossamer"])
    change(description)
    text = json.dumps(description)
    write_file(file, tensors, text, {"format": "pt", "gossamer": text})
