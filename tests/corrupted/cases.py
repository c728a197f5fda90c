"""One corrupted file or state: how it is made, what loads it, and how that ended."""

import json
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import CheckpointError, GossamerError
from gossamer.io.files import read_file, write_file
from gossamer.train.checkpoint import load_checkpoint, restore, save_checkpoint

PATTERNS = ("2:4", "50%", "2:4:v4", "block 4x4 50%")
KINDS = ("sparse", "masked", "adapted", "double")


@dataclass
class Ending:
    """How a case ended: its kind of target and damage, and the verdict."""

    target: str
    damage: str
    verdict: str
    """refused, harmless, another (valid) state; or a fault: half-loaded, silent, unclear."""
    text: str


def dense(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(16, width), nn.LayerNorm(width), nn.Linear(width, 16))


def built(kind: str, pattern: str, seed: int) -> nn.Module:
    """A small model whose layers are of one kind."""
    torch.manual_seed(seed)
    model = dense()
    if kind == "sparse":
        layers = [gossamer.SparseLinear.from_dense(model[i], pattern) for i in (0, 2)]
    elif kind == "masked":
        make = gossamer.nn.MaskedLinear.from_dense
        layers = [make(model[i], pattern, reselect_each_forward=False) for i in (0, 2)]
    else:
        rule = "double_pruned" if kind == "double" else "exact"
        layers = [gossamer.nn.AdaptedLinear(16, 16, pattern="2:4", backward=rule) for _ in range(2)]
        if kind == "adapted":
            layers[0].insert(2)
    model[0], model[2] = layers
    return model


def bits(model: nn.Module) -> dict[str, Any]:
    """All that a load may change."""
    found: dict[str, Any] = {"": str(model)}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[name] = (id(tensor), tensor.detach().clone())
    return found


def same_bits(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        a == after[name] if name == "" else a[0] == after[name][0] and equal(a[1], after[name][1])
        for name, a in before.items()
    )


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, NaN included."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*flat)


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


# ---- damage to the bytes of a file -------------------------------------------------------------


def truncated(content: bytes, r: random.Random) -> bytes:
    return content[: r.randrange(len(content))]


def flipped(content: bytes, r: random.Random, begin: int = 0, end: int | None = None) -> bytes:
    found = bytearray(content)
    for _ in range(r.choice((1, 1, 2, 8))):
        found[r.randrange(begin, end or len(content))] ^= 1 << r.randrange(8)
    return bytes(found)


def header_of(content: bytes) -> int:
    return 8 + struct.unpack_from("<Q", content)[0]


def overwritten(content: bytes, r: random.Random) -> bytes:
    found, at = bytearray(content), r.randrange(len(content))
    length = r.randrange(1, 64)
    found[at : at + length] = r.choice((bytes(length), r.randbytes(length)))
    return bytes(found)


def grown(content: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(content) + 1)
    return content[:at] + r.randbytes(r.randrange(1, 32)) + content[at:]


def huge_header(content: bytes, r: random.Random) -> bytes:
    return struct.pack("<Q", r.choice((2**63, 2**40, 2**32, 0, len(content)))) + content[8:]


def huge_sizes(content: bytes, r: random.Random) -> bytes:
    end = header_of(content)
    header = json.loads(content[8:end])
    name = r.choice([name for name in header if name != "__metadata__"])
    header[name]["shape"] = [r.choice((2**62, 2**40, -1, 0))] * r.choice((1, 2))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[end:]


def swapped_names(content: bytes, r: random.Random) -> bytes:
    end = header_of(content)
    header = json.loads(content[8:end])
    a, b = r.sample([name for name in header if name != "__metadata__"], 2)
    header[a], header[b] = header[b], header[a]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[end:]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": truncated,
    "bits of the header": lambda c, r: flipped(c, r, 0, header_of(c)),
    "bits of the data": lambda c, r: flipped(c, r, header_of(c)),
    "overwritten": overwritten,
    "grown": grown,
    "huge header": huge_header,
    "huge sizes": huge_sizes,
    "swapped tensors": swapped_names,
}

# ---- damage to a state dict --------------------------------------------------------------------

State = dict[str, Any]


def pick(state: State, r: random.Random, *endings: str) -> str:
    names = [n for n in state if isinstance(state[n], Tensor) and state[n].numel()]
    return r.choice([n for n in names if n.endswith(endings)] or names)


def missing(state: State, r: random.Random) -> None:
    del state[r.choice(list(state))]


def renamed(state: State, r: random.Random) -> None:
    name = r.choice(list(state))
    state[r.choice((f"{name}x", f"9.{name}", name[1:], ""))] = state.pop(name)


def wrong_shape(state: State, r: random.Random) -> None:
    name = pick(state, r)
    tensor = state[name].flatten()
    choices = (tensor[:-1], torch.cat([tensor, tensor]), tensor[None, :, None], tensor[:0])
    state[name] = r.choice(choices)


def wrong_dtype(state: State, r: random.Random) -> None:
    name = pick(state, r)
    kinds = (torch.int64, torch.float16, torch.bool, torch.complex64, torch.int8, torch.float64)
    state[name] = state[name].to(r.choice(kinds))


def no_tensor(state: State, r: random.Random) -> None:
    name = r.choice(list(state))
    state[name] = r.choice((None, 3, "text", [1, 2], state[name].to("meta")))


def bad_indices(state: State, r: random.Random) -> None:
    indices = state[pick(state, r, "indices")]
    flat = indices.view(-1)
    how = r.randrange(4)
    if how == 0:
        flat[r.randrange(len(flat))] = r.randrange(256)
    elif how == 1:
        flat.copy_(flat.flip(0))
    elif how == 2:
        flat.random_(0, 256)
    else:
        flat.fill_(r.choice((0, 255)))


def bad_pointers(state: State, r: random.Random) -> None:
    pointers = state[pick(state, r, "indptr")].view(-1)
    if pointers.dtype == torch.int32:
        pointers[r.randrange(len(pointers))] = r.choice((-1, 0, 2**31 - 1, 7, 10**6))


def bad_descriptor(state: State, r: random.Random) -> None:
    descriptor = state[pick(state, r, "descriptor")].view(-1)
    if descriptor.dtype == torch.int64:
        value = r.choice((-1, 0, 1, 3, 8, 2**31, 2**62, r.getrandbits(62)))
        descriptor[r.randrange(len(descriptor))] = value


def other_layer(state: State, r: random.Random) -> None:
    """One part of the structure comes from the other layer."""
    names = [n for n in state if n.startswith("0.") and "2" + n[1:] in state]
    a = r.choice(names)
    b = "2" + a[1:]
    state[a], state[b] = state[b], state[a]


STATES: dict[str, Callable[[State, random.Random], None]] = {
    "missing": missing,
    "renamed": renamed,
    "wrong shape": wrong_shape,
    "wrong dtype": wrong_dtype,
    "no tensor": no_tensor,
    "indices": bad_indices,
    "pointers": bad_pointers,
    "descriptor": bad_descriptor,
    "part of another layer": other_layer,
}


def edited(description: dict[str, Any], r: random.Random) -> None:
    """Change one value of a description."""
    holder: Any = description
    while True:
        key = r.choice(list(holder)) if isinstance(holder, dict) else r.randrange(len(holder))
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner) or r.random() < 0.2:
            break
        holder = inner
    if isinstance(holder, dict) and r.random() < 0.3:
        del holder[key]
    else:
        holder[key] = r.choice((None, -1, 2**70, "", "none", [], {}, 0.5, True))


# ---- one case ----------------------------------------------------------------------------------


def valid(model: nn.Module) -> bool:
    """Whether every structure of a model is sound, and its products are finite sums."""
    for module in model.modules():
        if isinstance(module, gossamer.nn.MaskedLayer):
            gossamer.backend.validate(module.structure)
            gossamer.masks.check_mask(module.mask(), module.pattern)
    x = torch.randn(2, 16, requires_grad=True)
    model(x).sum().backward()
    return True


def one_case(seed: int, number: int) -> Ending:
    """Make, load and judge a case."""
    r = random.Random(f"{seed}/{number}")
    kind, pattern = r.choice(KINDS), r.choice(PATTERNS)
    saved = built(kind, pattern, r.randrange(1000))
    target = r.choice(("folder", "folder", "state", "state", "layer", "checkpoint"))
    into = r.choice(("dense", "same", "other"))
    model = {"dense": dense, "same": lambda: built(kind, pattern, 2000),
             "other": lambda: built(r.choice(KINDS), r.choice(PATTERNS), 2001)}[into]()  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return _judged(r, target, saved, model, kind, pattern, Path(folder))


def _judged(
    r: random.Random, target: str, saved: nn.Module, model: nn.Module, kind: str, pattern: str,
    folder: Path,
) -> Ending:  # fmt: skip
    given = {name: tensor.clone() for name, tensor in saved.state_dict().items()}
    load: Callable[[], nn.Module]
    checked = False  # by a checksum over everything
    if target == "folder":
        gossamer.save(saved, folder)
        file = folder / "model.safetensors"
        if r.random() < 0.2:
            damage = "description"
            tensors, metadata = read_file(file, "", "")
            description = json.loads(metadata["gossamer"])
            edited(description, r)
            text = json.dumps(description)
            write_file(file, tensors, text, {"format": "pt", "gossamer": text})
        else:
            checked = True
            damage = r.choice(list(BYTES))
            file.write_bytes(BYTES[damage](file.read_bytes(), r))
        load = lambda: gossamer.load(folder, model)  # noqa: E731
    elif target == "checkpoint":
        model = built(kind, pattern, 2002)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(2, 16)).sum().backward()
        optimizer.step()
        other = torch.optim.AdamW(saved.parameters())
        saved(torch.randn(2, 16)).sum().backward()
        other.step()
        states = {"model": saved.state_dict(), "optimizer": other.state_dict()}
        file = folder / "checkpoint.safetensors"
        save_checkpoint(file, states)
        given = {name: tensor.clone() for name, tensor in saved.state_dict().items()}
        checked = True
        damage = r.choice(list(BYTES))
        file.write_bytes(BYTES[damage](file.read_bytes(), r))

        def load() -> nn.Module:
            restore({"model": model, "optimizer": optimizer}, load_checkpoint(file), file)
            return model
    else:
        names = list(STATES) if target == "state" else ["indices", "pointers", "descriptor"]
        damage = r.choice(names)
        STATES[damage](given, r)
        if target == "layer":
            model = built(kind, pattern, 2003)[0]
            given = {n[2:]: t for n, t in given.items() if n.startswith("0.")}

            def load() -> nn.Module:
                model.load_state_dict(given)
                return model
        else:
            load = lambda: gossamer.load(given, model)  # noqa: E731
    before = bits(model)
    try:
        loaded = load()
    except (GossamerError, CheckpointError) as error:
        verdict = "refused" if same_bits(before, bits(model)) else "half-loaded"
        return Ending(target, damage, verdict, f"{type(error).__name__}: {error!s:.200}")
    except Exception as error:
        verdict = "unclear" if same_bits(before, bits(model)) else "half-loaded"
        return Ending(target, damage, verdict, f"{type(error).__name__}: {error!s:.200}")
    return Ending(target, damage, *_accepted(loaded, given, saved, target, checked))


def _accepted(
    loaded: nn.Module, given: State, saved: nn.Module, target: str, checked: bool
) -> tuple[str, str]:
    """Judge a load that was not refused."""
    intact = saved.state_dict()
    if target == "layer":
        intact = saved[0].state_dict()
    state = loaded.state_dict()
    try:
        if target != "layer":
            valid(loaded)
    except Exception as error:
        return "silent", f"{type(error).__name__}: {error!s:.200}"
    if same_state(dict(state), dict(intact)):
        return "harmless", ""
    if checked:
        return "silent", "a file with a checksum was loaded otherwise than it was saved"
    # Values are converted to the model's dtype; structure is what was given, to the bit.
    for name, tensor in state.items():
        theirs = given.get(name)
        if not isinstance(theirs, Tensor) or theirs.shape != tensor.shape:
            return "silent", f"{name} is not what was given"
        if not equal(theirs.to(tensor.dtype), tensor):
            return "silent", f"{name} is not what was given"
    return "another", ""


__all__ = ["Ending", "one_case"]
