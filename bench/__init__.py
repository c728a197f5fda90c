"""Measures Gossamer beside its rivals: `python -m bench --help`, from the root of a checkout."""
