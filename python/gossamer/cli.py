"""The command line's entry: `gossamer info` needs torch and NumPy alone, the rest the cli extra."""

import os
import sys
from importlib.util import find_spec

EXTRA = ("typer", "rich", "matplotlib")


def main() -> None:
    """Run the command line; without the extra packages, `info` alone."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a test that captures the output
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone, odd names
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except OSError as error:
        # What waits to be written must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"error: standard output cannot be written: {error.strerror}")


def _run() -> None:
    missing = [name for name in EXTRA if find_spec(name) is None]
    if not missing:
        from gossamer.commands import run

        run()
    elif sys.argv[1:] == ["info"]:
        from gossamer.about import about

        print(about())
    else:
        command = " ".join(["gossamer", *sys.argv[1:2]])
        sys.exit(f"error: {command} needs {', '.join(missing)}: pip install 'gossamer[cli]'")


if __name__ == "__main__":
    main()
