"""What a trained network makes of new images: predictions, explanations, nearest training images. Calls single_run."""
