"""The parent's side of a rival in a process of its own: ask, wait for a limit, kill.

A worker that is not asked is stopped: pools of threads spin for a while after their work, which
would be charged to the next entrant.
"""

import os
import signal
import subprocess
import sys
import weakref
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from bench.harness import worker
from bench.harness.contest import StillRunningError
from bench.harness.machine import available_cores
from gossamer import isa

# Loading may import a library and compile for it.
PATIENCE = 120.0
# A loop in Python ends when it is asked to; compiled code is killed with its process.
GRACE = 0.5


class FailedError(Exception):
    """A call raised, or its process died; the message says how."""


class Worker:
    """One entrant in a process of its own, which starts when it is first asked.

    Args:
        function: of `file`; it makes a problem ready to be solved.
        threads: that it may use; with one, it is also bound to one core.
        file: of the solvers.
        judge: file with a function ``error`` of an answer and its problem.
    """

    def __init__(self, function: str, threads: int, file: str, judge: str):
        self.function, self.threads, self.file, self.judge = function, threads, file, judge
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def ask(self, order: str, key: int, *rest: Any, limit: float = PATIENCE) -> Any:
        """Have an order of `worker.Desk` carried out.

        Args:
            order: its name.
            key: of the problem.
            rest: of its arguments.
            limit: seconds.

        Returns:
            What it returned.

        Raises:
            StillRunningError: the limit is over; if the process had to be killed, its problems
                are lost.
            FailedError: the entrant raised an error, or its process died.
        """
        process, connection = self._start()
        process.send_signal(signal.SIGCONT)
        try:
            connection.send((order, key, *rest))
            if not connection.poll(limit):
                process.send_signal(signal.SIGINT)
                if connection.poll(GRACE):
                    connection.recv()
                    process.send_signal(signal.SIGSTOP)
                else:
                    self.kill()
                raise StillRunningError(f"still running after {limit:.3g} s")
            good, answer = connection.recv()
        except StillRunningError:
            raise
        except (EOFError, ConnectionError) as error:
            code = process.wait()
            self.kill()
            raise FailedError(f"its process ended with status {code}") from error
        except BaseException:
            self.kill()
            raise
        process.send_signal(signal.SIGSTOP)
        if not good:
            raise FailedError(answer)
        return answer

    def kill(self) -> None:
        """End the process, whatever it does; the next question starts another."""
        if self._running:
            process, connection = self._running
            self._running = None
            _end(process, connection)

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        if self._running is None:
            ours, theirs = Pipe()
            command = [sys.executable, "-P", worker.__file__, str(theirs.fileno())]
            files = [str(Path(name).resolve()) for name in (self.file, self.judge)]
            process = subprocess.Popen(
                [*command, *files, self.function],
                pass_fds=[theirs.fileno()],
                env=environment(self.threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            theirs.close()
            if self.threads == 1 and hasattr(os, "sched_setaffinity"):
                # Libraries that know of no limit get one all the same.
                os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
            self._running = process, ours
            weakref.finalize(self, _end, process, ours)
        return self._running


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    process.kill()
    process.wait()
    connection.close()


def environment(threads: int) -> dict[str, str]:
    """What tells every library how many threads it may use.

    Args:
        threads: at least 1.

    Returns:
        The variables of the worker's process.

    Example:
        >>> environment(1)["OMP_NUM_THREADS"]
        '1'
    """
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    own = dict.fromkeys(limits, str(min(threads, available_cores())))
    if threads == 1:
        own["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return os.environ | own | {"GOSSAMER_ISA": isa()}
