"""Evaluation of runs.

``prediction`` applies a trained network to images, ``single_run`` evaluates one run, ``comparison``
compares several, ``advice`` ranks backbones before training.
"""
