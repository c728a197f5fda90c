"""The learning rate of sparse layers, over densities."""
