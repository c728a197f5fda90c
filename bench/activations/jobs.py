"""The jobs: a step of training, a block's step, and a call that decodes, each beside torch's."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from bench.activations.cases import Block, Dense, Live, Scope, Size, layers, problem, verify
from bench.harness.bars import Bar
from bench.harness.plan import Job, Plan, time_together
from bench.harness.record import GOSSAMER, Key, Record
from gossamer.activations import has_fast_int8
from gossamer.nn import ActivationSparseFFN

TRAINING, BLOCK, DECODING = "training", "block", "decoding"
STEP, BLOCK_STEP, CALL = "forward + backward", "block, forward + backward", "decoding"
DENSE, AUTOCAST = "torch", "torch, autocast"
SPARSE_ATTENTION = "2:4:v4"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _bars(
    topic: str, rival: str, bounds: Mapping[float, float], dtype: str = "float32"
) -> list[Bar]:
    return [
        Bar(topic, (rival,), bound, patterns=(f"{100 * share:g}% *",), dtype=dtype,
            words=f"{bound:g} times the dense network in {dtype}")
        for share, bound in bounds.items()
    ]  # fmt: skip


def bars() -> list[Bar]:
    """The bars of the instruction set in use: with products of int8, and without."""
    if not has_fast_int8():
        return _bars(STEP, DENSE, {0.01: 6})
    return [
        *_bars(STEP, DENSE, {0.01: 10, 0.05: 5, 0.1: 3, 0.2: 2}),
        *_bars(STEP, DENSE, {0.01: 5, 0.05: 2.5}, "bfloat16"),
        *_bars(BLOCK_STEP, DENSE, {0.01: 2.1}),
        *_bars(CALL, DENSE, {0.02: 5}),
    ]


def training(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per size, share, dtype and number of threads."""
    for size in plan.scope.sizes:
        for live in plan.scope.live:
            for dtype in plan.scope.dtypes:
                for threads in plan.threads:
                    name = str(dtype).removeprefix("torch.")
                    key = (STEP, str(size), str(live), name, threads)
                    yield _job(TRAINING, key, partial(_step, plan, key, size, live, dtype))


def block(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per share and number of threads: Zipf's pairs, as trained networks have them."""
    for live in (Live(0.01, True), Live(0.05, True)):
        for threads in plan.threads:
            key = (BLOCK_STEP, str(plan.scope.block), str(live), "float32", threads)
            yield _job(BLOCK, key, partial(_block, plan, key, live))


def decoding(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per size and number of threads, at 2 % live."""
    for size in plan.scope.decoding:
        for threads in plan.threads:
            key = (CALL, str(size), str(Live(0.02, True)), "float32", threads)
            yield _job(DECODING, key, partial(_call, plan, key, size))


def _job(group: str, key: Key, run: Callable[[list[str]], list[Record]]) -> Job:
    topic, shape, pattern, dtype, threads = key
    title = f"{topic}, {shape}, {pattern}, {dtype}, threads: {threads}"
    return Job(group, title, threads, [key], run)


def stepper(
    module: nn.Module, inputs: tuple[Tensor, ...], grad_output: Tensor
) -> Callable[[], Tensor]:
    """A step of training without the optimizer.

    Args:
        module: whose gradients are set to None first.
        inputs: of the module; the first gets a gradient.
        grad_output: of its result.

    Returns:
        A function that runs the step and returns the module's result.
    """
    leaf = inputs[0].clone().requires_grad_()

    def step() -> Tensor:
        module.zero_grad()
        leaf.grad = None
        y: Tensor = module(leaf, *inputs[1:])
        y.backward(grad_output)  # type: ignore[no-untyped-call]
        return y.detach()

    return step


def _autocast(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return step()

    return run


def _chosen(forms: Iterator[tuple[str, ActivationSparseFFN]]) -> Iterator[tuple[str, nn.Module]]:
    return (pair for pair in forms if has_fast_int8() or pair[1].gate_form != "int8")


def _step(
    plan: Plan[Scope], key: Key, size: Size, live: Live, dtype: torch.dtype, _: list[str]
) -> list[Record]:
    x, weights = problem(size, live)
    x = x[: size.tokens].to(dtype)
    grad_output = torch.randn_like(x)
    calls = {
        name: stepper(layer, (x,), grad_output) for name, layer in _chosen(layers(weights, dtype))
    }
    calls[DENSE] = stepper(Dense(weights).to(dtype), (x,), grad_output)
    wanted = calls[DENSE]()
    for name, call in calls.items():
        for _again in range(3):  # the first calls choose the form
            verify(f"{name}, {key}", call(), wanted, TOLERANCE[dtype])
    if dtype == torch.bfloat16:
        calls[AUTOCAST] = _autocast(stepper(Dense(weights), (x.float(),), grad_output))
        calls[AUTOCAST]()
    return [Record.timed(key, time_together(plan, {**calls}), density=live.share)]


def _block(plan: Plan[Scope], key: Key, live: Live, _: list[str]) -> list[Record]:
    size = plan.scope.block
    x, weights = problem(size, live)
    into = x[: size.tokens].view(2, -1, size.d)
    x = torch.randn_like(into)
    grad_output = torch.randn_like(x)
    forms = dict(layers(weights, torch.float32))
    dense = Block(Dense(weights), size.d)
    modules = {
        GOSSAMER: Block(forms[GOSSAMER], size.d),
        DENSE: dense,
        f"{SPARSE_ATTENTION} attention": Block(
            dict(layers(weights, torch.float32))[GOSSAMER], size.d, SPARSE_ATTENTION
        ),
    }
    for name in ("norms", "qkv", "out"):
        getattr(modules[GOSSAMER], name).load_state_dict(getattr(dense, name).state_dict())
    calls = {name: stepper(module, (x, into), grad_output) for name, module in modules.items()}
    wanted = calls[DENSE]()
    for _again in range(3):
        verify(f"{GOSSAMER}, {key}", calls[GOSSAMER](), wanted, 1e-5)
    return [Record.timed(key, time_together(plan, {**calls}), density=live.share)]


@torch.no_grad()
def _call(plan: Plan[Scope], key: Key, size: Size, _: list[str]) -> list[Record]:
    x, weights = problem(size, Live(0.02, True))
    x = x[: size.tokens].contiguous()
    modules: dict[str, nn.Module] = {**dict(_chosen(layers(weights, torch.float32)))}
    modules[DENSE] = Dense(weights)
    wanted = modules[DENSE](x)
    calls: dict[str, Callable[[], object]] = {}
    for name, module in modules.items():
        module.eval()
        for _again in range(3):
            verify(f"{name}, {key}", module(x), wanted, 1e-5)
        calls[name] = partial(module, x)
    return [Record.timed(key, time_together(plan, calls), density=0.02)]
