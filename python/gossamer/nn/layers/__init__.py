"""The layer classes: sparse layers, masked layers, and the layers of single recipes."""
