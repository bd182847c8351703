"""Runs that are made of other runs: soups, WiSE-FT and ensembles."""
