"""How one run did: metrics, curves, calibration, slices, robustness. Calls nothing of the other questions."""
