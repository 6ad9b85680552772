"""The package's version, readable without installing it."""

__version__ = "0.1.0"
