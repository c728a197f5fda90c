"""Classes forgotten by low-rank adapters of which whole blocks become zero."""
