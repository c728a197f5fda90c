"""`python -m gossamer`: the command line, in the form that torchrun starts."""

from gossamer.cli import main

main()
