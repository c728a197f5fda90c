"""Scores for cuts at once: of a trained GPT, and of an untrained network for digits."""
