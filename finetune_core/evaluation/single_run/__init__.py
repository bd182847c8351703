"""Evaluation of one run: metrics, curves, calibration, slices, robustness, predictions in fp32."""
