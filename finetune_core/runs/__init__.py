"""Runs: their directories, the store that reads them, and the worker that trains in the app.

The package depends on training and on what training depends on.
"""
