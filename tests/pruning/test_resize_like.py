"""resize_like(): a fresh model takes the state of a pruned one, whatever was cut."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.errors import CheckpointError, DTypeError
from gossamer.pruning import prune, resize_like, shrink
from pruning.test_prune import CASES
from pruning.test_prune import drawn as drawn_network
from pruning.test_prune_transformers import MODELS
from pruning.test_prune_transformers import drawn as drawn_transformer
from support.submodels import close

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", [*CASES, *MODELS])
def test_a_fresh_model_takes_the_state(name: str) -> None:
    model, x = drawn_network(name) if name in CASES else drawn_transformer(name)
    inputs: tuple[Any, ...] = x if isinstance(x, tuple) else (x,)
    smaller = prune(model, x, 0.7).eval()
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    resized = resize_like(fresh, smaller.state_dict())
    shapes = [[p.shape for p in m.parameters()] for m in (model, fresh)]
    assert shapes[0] == shapes[1]
    resized.load_state_dict(smaller.state_dict())
    assert repr(resized) == repr(smaller)
    with torch.no_grad():
        close(resized.eval()(*inputs), smaller(*inputs), 0.0)


def test_a_bias_that_a_constant_has_made_is_there() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        model[0].weight[:2] = 0
    smaller = shrink(model, torch.randn(1, 4))
    assert smaller[2].bias is not None
    resized = resize_like(model, smaller.state_dict())
    resized.load_state_dict(smaller.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(resized(x), smaller(x))


def test_a_state_of_another_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    state = model.state_dict()
    with pytest.raises(CheckpointError, match=re.escape("other names than the model: 1.bias, 2")):
        resize_like(model, {("2" if k == "1.bias" else k): v for k, v in state.items()})
    with pytest.raises(CheckpointError, match=r"got 0.weight of shape \[6\] for a model in which"):
        resize_like(model, state | {"0.weight": torch.ones(6)})
    with pytest.raises(DTypeError, match="a Module is needed"):
        resize_like(3, state)  # type: ignore[arg-type]
