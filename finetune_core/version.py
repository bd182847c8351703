"""Thaw's version, which the build backend reads from here."""

__version__ = "0.12.0"
