"""Application of a trained network to new images: predictions, Grad-CAM, nearest neighbours."""
