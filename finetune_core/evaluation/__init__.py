"""Runs evaluated: ``prediction`` asks a trained network, ``single_run`` evaluates one run, ``comparison`` compares several."""
