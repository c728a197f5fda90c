"""Runs `python -m bench`."""

from bench.cli import app
from bench.harness.front import start

start(app, "python -m bench")
