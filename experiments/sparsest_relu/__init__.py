"""The sparsest ReLU networks through given points."""
