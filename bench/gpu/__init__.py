"""What a GPU does with this package: `python -m bench.gpu`, one command for such a machine."""
