"""Optimal transport at work."""
