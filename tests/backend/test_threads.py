"""One pool of threads, governed by torch, safe after fork, and outside Python's lock."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gossamer import backend
from support.kernel_cases import VERBS, Products, Weight, make_weight, random, run_verb, same_bits

pytestmark = pytest.mark.process

BATCH = 192


def big_weight(vector: int = 1) -> Weight:
    weight = make_weight(768, 1024, vector, "0.25", torch.float32)
    assert weight.structure.nnz * BATCH > 2**18, "too little work to be shared among threads"
    return weight


def operands(weight: Weight, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = random(BATCH, weight.cols, dtype=torch.float32, seed=seed)
    return x, random(BATCH, weight.rows, dtype=torch.float32, seed=seed + 1)


def all_verbs(weight: Weight, x: Tensor, g: Tensor) -> list[Tensor]:
    return [result for verb in VERBS for result in run_verb(verb, weight, x, g).values()]


def in_a_fork(work: Callable[[], bool], seconds: float = 60) -> str:
    """Runs `work` in a forked child: "true", "false", "raised", "hung" or "signal n"."""
    with warnings.catch_warnings():
        # Python warns that a fork beside threads may deadlock: that it does not is what we test.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return f"signal {os.WTERMSIG(status)}"
            return ["true", "false", "raised"][os.WEXITSTATUS(status)]
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def test_a_hung_child_is_seen() -> None:
    assert in_a_fork(lambda: bool(time.sleep(60)), seconds=0.2) == "hung"
    assert in_a_fork(lambda: False) == "false"
    assert in_a_fork(lambda: 1 // 0 == 0) == "raised"


@pytest.mark.parametrize("vector", [1, 4])
def test_fork_after_parallel_use(vector: int) -> None:
    torch.set_num_threads(2)
    weight = big_weight(vector)
    x, g = operands(weight)
    expected = all_verbs(weight, x, g)

    def same() -> bool:
        here = all_verbs(weight, x, g)
        return backend.info()["threads"] == 2 and all(map(same_bits, here, expected))

    for _ in range(5):
        assert in_a_fork(same) == "true"
        assert same(), "the parent goes on"


def test_fork_of_a_fork_and_fork_from_a_thread() -> None:
    torch.set_num_threads(2)
    weight = big_weight()
    x, g = operands(weight)
    expected = all_verbs(weight, x, g)

    def same() -> bool:
        return all(map(same_bits, all_verbs(weight, x, g), expected))

    assert in_a_fork(lambda: same() and in_a_fork(same) == "true") == "true"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(same).result()
        assert pool.submit(in_a_fork, same).result() == "true"


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_data_loader_workers(start: str) -> None:
    torch.set_num_threads(2)
    weight = big_weight()
    products = Products(weight, [operands(weight, seed)[0] for seed in range(6)])
    expected = [products[i] for i in range(len(products))]
    loader = DataLoader(
        products, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=100
    )
    found = list(loader)
    assert len(found) == len(expected)
    assert all(map(same_bits, found, expected))


def test_many_threads_on_one_weight() -> None:
    torch.set_num_threads(2)
    weights = [big_weight(1), big_weight(4)]
    jobs = [(w, *operands(w, seed)) for w in weights for seed in range(4)]
    expected = [all_verbs(*job) for job in jobs]
    start = threading.Barrier(8)

    def repeat(number: int) -> bool:
        start.wait()
        good = True
        for turn in range(6):
            which = (number + turn) % len(jobs)
            good &= all(map(same_bits, all_verbs(*jobs[which]), expected[which]))
        return good

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(repeat, range(8)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_torch_governs_the_number_of_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    assert backend.info()["threads"] == threads
    with ThreadPoolExecutor(1) as pool:  # a thread that has never called torch
        assert pool.submit(lambda: backend.info()["threads"]).result() == threads


def threads_alive() -> int:
    """Threads of this process, OpenMP's included."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208  (a folder of this process, not files)


def test_one_thread_starts_no_other() -> None:
    weight = big_weight()
    x, g = operands(weight)
    torch.set_num_threads(1)

    def starts_none() -> bool:
        before = threads_alive()
        all_verbs(weight, x, g)
        return threads_alive() == before

    def starts_two() -> bool:
        torch.set_num_threads(3)
        before = threads_alive()
        all_verbs(weight, x, g)
        return threads_alive() == before + 2

    # In a fork, where no pool is left from earlier tests.
    assert in_a_fork(starts_none) == "true"
    assert in_a_fork(starts_two) == "true"


@pytest.mark.slow
@pytest.mark.process
def test_one_openmp_runtime() -> None:
    """In a process of its own: other tests load packages that bring a pool of theirs."""
    program = """
import threadpoolctl, torch
from gossamer import backend
from gossamer.nn import SparseLinear

torch.set_num_threads(2)
SparseLinear(1024, 768, pattern="75%")(torch.ones(192, 1024)).sum().backward()
torch.ones(1000, 1000).sum()
for pool in threadpoolctl.threadpool_info():
    if pool["user_api"] == "openmp":
        print(pool["prefix"], pool["num_threads"])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n") == ["libgomp 2", ""]


def test_another_python_thread_advances_during_a_kernel() -> None:
    torch.set_num_threads(1)
    backend.use_isa("reference")  # slow, so that one call lasts for long
    weight = big_weight()
    x, g = operands(weight)
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "spmm": lambda x, g: backend.spmm(x, weight.values, weight.structure),
        "spmm_t": lambda x, g: backend.spmm_t(g, weight.values, weight.structure),
        "spmm_t, packed": lambda x, g: backend.spmm_t(
            g, weight.values, weight.structure, weight.transposed
        ),
        "sddmm": lambda x, g: backend.sddmm(g, x, weight.structure),
    }
    for name, call in calls.items():
        seconds, repeats = 0.0, 1
        while seconds < 0.06:  # processors differ: the batch grows until one call lasts
            assert repeats <= 64, f"{name} is too short to show anything"
            many_x, many_g = x.repeat(repeats, 1), g.repeat(repeats, 1)
            ticks: list[float] = []
            done = threading.Event()
            ticker = threading.Thread(target=tick, args=(done, ticks))
            ticker.start()
            began = time.perf_counter()
            call(many_x, many_g)
            seconds = time.perf_counter() - began
            done.set()
            ticker.join()
            repeats *= 2
        middle = [t for t in ticks if began + 0.005 < t < began + seconds - 0.005]
        assert len(middle) >= 3, f"{name} holds Python's lock"


def tick(done: threading.Event, ticks: list[float]) -> None:
    while not done.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
