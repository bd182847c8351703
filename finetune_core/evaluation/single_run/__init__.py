"""How one run did: metrics, curves, calibration, slices, robustness, the evaluation in fp32."""
