"""All recipes side by side."""
