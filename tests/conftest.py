"""What every test gets: a fixed seed, and process-wide settings put back after it."""

import gc
import os
from collections.abc import Iterator

import pytest

# Runs inside POT's own tests alone, where POT is installed: see tests/peers/pot_suite.py.
collect_ignore = ["peers/pot_plugin.py"]

os.environ.setdefault("MPLBACKEND", "Agg")  # no window: the machine may have no screen
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Configure hypothesis where tests run; a process that only hands them out starts sooner.

    GOSSAMER_BACKEND=composite lets the torch operators of a device without kernels serve the CPU.
    """
    if getattr(config.option, "numprocesses", None):
        return
    if os.environ.get("GOSSAMER_BACKEND"):
        from support import other_backends

        other_backends.serve_the_cpu(os.environ["GOSSAMER_BACKEND"])
    from hypothesis import HealthCheck, settings

    # No deadline: the first call of a kernel, a loaded machine or a sanitizer is slow by nature.
    settings.register_profile(
        "gossamer",
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("gossamer")


def pytest_collection_finish() -> None:
    """Leave the modules and the collected tests out of later garbage collections.

    They live as long as the process. A collection that walks them takes a quarter of a second, and
    every measurement begins with one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def one_thread() -> None:
    """One thread: quickest and steadiest where matrices are small."""
    import torch

    torch.set_num_threads(1)  # _same_start sets it back


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    import torch

    from gossamer import backend

    threads, dtype, isa = torch.get_num_threads(), torch.get_default_dtype(), backend.isa()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    backend.use_isa(isa)
