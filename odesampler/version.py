"""The version, in one place: packaging reads it, recipes record it."""

__version__ = "0.1.0.dev0"
