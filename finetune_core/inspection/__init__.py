"""What a pretrained network's features tell of a data set before anything is trained."""
