"""Runs `python -m experiments NAME`."""

from bench.harness.front import start
from experiments.cli import app

start(app, "python -m experiments")
