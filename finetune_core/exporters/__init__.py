"""A run -> files that work without Thaw: weights, ONNX, torch.export, a training script, a model card; its curves for TensorBoard
and MLflow. Calls evaluation and before."""
