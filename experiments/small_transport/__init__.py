"""Many tiny transport problems inside a model: times beside the same in batched torch."""
