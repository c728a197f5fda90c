"""Experiments on real data: `python -m experiments --help`, from the root of a checkout."""
