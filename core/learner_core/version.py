"""The version of the library, as its packages have it."""

__all__ = ["__version__"]

__version__ = "0.1.0.dev0"
