"""Corrupted files and states against everything that loads: `python tests/corrupted`."""
