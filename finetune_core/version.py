"""Thaw's version. The build backend reads it from here."""

__version__ = "0.12.0"
