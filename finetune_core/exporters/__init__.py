"""Exports of a run that work without Thaw.

Formats: weights, ONNX, torch.export, a training script, a model card, and curves for TensorBoard
and MLflow. Imports from evaluation and the packages below it.
"""
