"""Integrations with other libraries: one module each, imported only where the library is there."""
