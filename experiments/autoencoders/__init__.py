"""Sparse autoencoders on the activations of a small GPT."""
