"""`python -m gossamer`: the command line, in the form that torchrun starts."""

from gossamer.cli import main

if __name__ == "__main__":
    main()
