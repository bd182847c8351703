"""Predictions -> metrics; a trained network put back together and asked about new images. Calls runs and before."""
