"""Pixelated butterfly beside random blocks and dense: loss and time of a small GPT."""
