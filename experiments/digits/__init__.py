"""Structured sparsity on the digits."""
