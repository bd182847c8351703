"""Images and activations on their way into a network."""
