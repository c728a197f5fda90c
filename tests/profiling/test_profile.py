"""What `gossamer.profile` measures, what it concludes, and that it leaves everything as it was."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import ArgumentError, DeviceError, DTypeError, PatternError
from gossamer.profiling import LayerTimes, Profile


class Small(nn.Module):
    """One layer that is called twice, one tied to an embedding, a norm, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32, 16)
        self.inner = nn.Linear(16, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.head = nn.Linear(16, 32)
        self.head.weight = self.tokens.weight
        self.idle = nn.Linear(16, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens: torch.Tensor) -> dict[str, Any]:
        x = self.inner(self.inner(self.tokens(tokens)))
        x = self.norm(self.drop(x).transpose(1, 2)).transpose(1, 2)
        return {"logits": self.head(self.frozen(x)), "ids": tokens}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(32, (3, 5))


def profile_of(seconds: dict[str, dict[str, float]], step: float, calls: int = 1) -> Profile:
    layers = tuple(
        LayerTimes((name,), calls, 8, 8, 4, "float32", "dense", times)
        for name, times in seconds.items()
    )
    return Profile(layers, ("2:4", "90%"), step, True, 1)


def test_each_called_layer_is_timed_with_the_rows_it_received(tokens: torch.Tensor) -> None:
    found = gossamer.profile(Small(), tokens, ["2:4", "90%"], rounds=1)
    rows = {layer.names: (layer.calls, layer.rows) for layer in found.layers}
    assert rows == {("inner",): (2, 15), ("frozen",): (1, 15), ("head",): (1, 15)}
    assert all(set(la.seconds) == {"dense", "2:4", "90%"} for la in found.layers[:2])
    assert all(t > 0 for layer in found.layers for t in layer.seconds.values())
    assert found.step > 0
    assert 0 < found.share <= 1


def test_a_layer_that_sparsify_leaves_dense_is_timed_dense_alone(tokens: torch.Tensor) -> None:
    found = gossamer.profile(Small(), tokens, "2:4", rounds=1)
    head = found.layers[-1]
    assert set(head.seconds) == {"dense"}
    assert "tokens.weight" in head.refused["2:4"]
    assert "head" in found.keep_dense("2:4")
    assert "tokens.weight" in str(found)


def test_a_pattern_that_does_not_fit_is_told(tokens: torch.Tensor) -> None:
    found = gossamer.profile(Small(), tokens, "2:4:v32", rounds=1)
    assert "out_features must be a multiple of 32" in str(found)
    assert set(found.keep_dense("2:4:v32")) == {"inner", "frozen", "head"}


def test_gradients_are_those_that_a_layer_computes(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    real = torch.autograd.grad

    def spy(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(tuple(len(t.shape) for t in inputs))
        return real(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False))
    gossamer.profile(model, torch.randn(4, 8), "2:4", rounds=1)
    # First layer: weight and bias, dense or packed, but no input; second: its input alone.
    assert {(2, 1), (1, 1), (2,)} == set(asked)
    asked.clear()
    gossamer.profile(model, torch.randn(4, 8), "2:4", backward=False, rounds=1)
    assert asked == []


def test_autocast_is_that_of_the_call(tokens: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = gossamer.profile(Small(), tokens, "2:4", rounds=1)
    assert {layer.dtype for layer in found.layers} == {"bfloat16"}


def test_nothing_changes(tokens: torch.Tensor) -> None:
    model = Small().train()
    model.norm.eval()
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    gossamer.profile(model, tokens, "2:4", rounds=1)
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not model.norm.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_error_of_the_model_passes_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(4, 8)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gossamer.profile(model, torch.randn(4, 8))
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_sparse_layer_is_compared_with_dense_and_other_patterns() -> None:
    model = gossamer.sparsify(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), "2:4")
    (layer,) = gossamer.profile(model, torch.randn(4, 16), "90%", rounds=1).layers
    assert layer.pattern == "2:4"
    assert set(layer.seconds) == {"dense", "2:4", "90%"}
    assert layer.now == layer.seconds["2:4"]


@pytest.mark.parametrize("example", [(torch.randn(2, 8),), [torch.randn(2, 8)]])
def test_examples_are_arguments(example: Any) -> None:
    gossamer.profile(nn.Linear(8, 8), example, "2:4", rounds=1)
    gossamer.profile(nn.Linear(8, 8), {"input": example[0]}, "2:4", rounds=1)


def test_layers_that_gain_decide_the_estimate() -> None:
    found = profile_of(
        {"a": {"dense": 4.0, "2:4": 1.0}, "b": {"dense": 2.0, "2:4": 3.0}, "c": {"dense": 1.0}},
        step=20.0,
        calls=2,
    )
    assert found.keep_dense("2:4") == ["b", "c"]
    assert found.estimate("2:4") == pytest.approx(14.0)  # 20 less 2 * (4 - 1)
    assert found.estimate("90%") == pytest.approx(20.0)
    assert found.share == pytest.approx(14 / 20)
    assert found.layers[0].best == "2:4"
    assert found.layers[0].gain("2:4") == 4.0
    assert "2:4: about 14 s a step, 1.43x, with b, c left dense" in str(found)


def test_a_step_never_takes_less_than_its_layers() -> None:
    found = profile_of({"a": {"dense": 4.0, "2:4": 3.0}}, step=2.0)
    assert found.estimate("2:4") == 3.0
    assert found.share == 1.0


def test_a_pattern_without_times_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"has no times of 1:4; it has 2:4, 90%"):
        profile_of({"a": {"dense": 1.0}}, 1.0).keep_dense("1:4")


def test_names_of_blocks_are_shown_once() -> None:
    layer = LayerTimes(("h.0.fc1", "h.1.fc1", "h.10.fc1"), 3, 8, 8, 4, "", "dense", {"dense": 1.0})
    assert "\nh.*.fc1 " in str(Profile((layer,), (), 3.0, True, 1))


def test_a_picture_names_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "gossamer.agg"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "gossamer.profiling.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*: pip install 'gossamer\[cli\]'"):
        profile_of({"a": {"dense": 4.0}}, 4.0).plot(tmp_path / "p.png")


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    found = profile_of({"a": {"dense": 4.0, "2:4": 3.0}}, step=20.0)
    found.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "gpt"}, DTypeError, "got model='gpt'; a Module is needed"),
        ({"model": nn.PReLU()}, ArgumentError, "no call"),
        ({"patterns": []}, ArgumentError, "no pattern"),
        ({"patterns": "nonzeros"}, PatternError, "own zeros"),
        ({"patterns": "three"}, PatternError, "three"),
        ({"rounds": 0}, ArgumentError, "rounds=0"),
        ({"rounds": True}, DTypeError, "rounds=True"),
        ({"model": nn.Linear(8, 8).requires_grad_(False)}, ArgumentError, "backward=False"),
        ({"model": nn.Linear(8, 8, device="meta"), "example": torch.randn(2, 8, device="meta")},
         DeviceError, "on meta"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_error(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    given: dict[str, Any] = {"model": nn.Linear(8, 8), "example": torch.randn(2, 8)} | change
    with pytest.raises(error, match=words):
        gossamer.profile(**({"rounds": 1} | given))
