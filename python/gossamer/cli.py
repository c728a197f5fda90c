"""The command line's entry: `gossamer info` needs torch and NumPy alone, the rest the cli extra."""

import sys
from importlib.util import find_spec

EXTRA = ("typer", "rich", "matplotlib")


def main() -> None:
    """Run the command line; without the extra packages, `info` alone."""
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
