"""Runs evaluated: ``prediction`` asks a trained network, ``single_run`` judges one run, ``comparison`` judges several."""
