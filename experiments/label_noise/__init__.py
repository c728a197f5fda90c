"""Sharpness-aware training on the digits with wrong labels."""
