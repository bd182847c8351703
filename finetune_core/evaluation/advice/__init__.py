"""Advice before training: which backbone and which cut, by cross-validated linear probes.

The time that training would take is forecast beside them.
"""
