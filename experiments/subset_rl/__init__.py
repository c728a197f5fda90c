"""Reinforcement learning of a small language model, as a whole and on chosen entries."""
