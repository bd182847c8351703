"""What a trained network makes of new images: predictions, explanations, the nearest training images."""
