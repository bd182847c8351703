"""Backbones: the catalogue, the sources of their weights, and their ordered stages.

Imports only from config, data and errors, and from the modules directly in ``finetune_core``.
"""
