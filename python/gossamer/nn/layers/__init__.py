"""The layer classes: sparse layers, masked layers, and those that recipes build."""
