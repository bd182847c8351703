"""Plotly figures and Altair charts, made from arrays.

Cold colours mean frozen, warm colours mean training. Each split and each run keeps its colour in
all figures.
"""
