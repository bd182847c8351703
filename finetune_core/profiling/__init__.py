"""Profile of a backbone on a data set: the gain of training each stage alone.

Gains are over the linear probe.
"""
