"""Ways to train a pruned model on without a change of its mask."""
