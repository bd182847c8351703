"""Data sets: indexing, splits, inspection and pixels.

A folder of images becomes an indexed, split and inspected data set. The package depends on config
and errors only.
"""
