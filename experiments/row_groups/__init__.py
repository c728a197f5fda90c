"""What rows grouped by similarity keep when V of them share their columns."""
