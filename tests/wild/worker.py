"""Makes the calls that it is told by number, each in its turn, and tells what became of it.

Standard input: lines "number". Standard output: one JSON line before a call and one after it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ADDRESS_SPACE = 12 * 2**30  # bytes: what asks for more gets MemoryError instead of the machine


def main() -> None:
    """Read the seed and the numbers, and make the calls."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    import torch

    from wild.calls import one_call
    from wild.targets import targets

    torch.set_num_threads(1)
    seed = int(sys.argv[1])
    every = targets()
    dtype = torch.get_default_dtype()
    print(json.dumps({"ready": len(every)}), file=answers)
    for line in sys.stdin:
        number = int(line)
        target = every[number % len(every)]
        print(json.dumps({"name": target.name}), file=answers)
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            os.chdir(folder)
            try:
                outcome = one_call(target, seed * 1_000_003 + number)
            finally:
                os.chdir("/")
        torch.set_default_dtype(dtype)
        torch.set_num_threads(1)
        torch.set_grad_enabled(True)
        print(json.dumps(outcome), file=answers)


if __name__ == "__main__":
    main()
