"""Sparse Model Soups and SWAMP on the digits, beside iterative pruning and an ensemble."""
