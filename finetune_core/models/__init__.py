"""Backbones: which there are, where their weights come from, and their ordered stages. Calls only config and errors."""
