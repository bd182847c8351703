"""Data sets: indexing, splits, inspection and pixels.

A folder of images becomes an indexed, split and inspected data set. The package imports from
config, and from the modules directly in ``finetune_core``.
"""
