"""A run -> files that work without Thaw: weights, ONNX, torch.export, a training script, a model card. Calls evaluation and before."""
