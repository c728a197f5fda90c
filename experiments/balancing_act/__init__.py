"""Constraints on what pruning costs each class of the digits."""
