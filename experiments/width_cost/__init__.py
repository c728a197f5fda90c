"""What rows that share their columns, and whole blocks, cost in accuracy."""
