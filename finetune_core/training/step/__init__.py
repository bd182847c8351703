"""One training step: forward, loss, backward, optimizer, and what is measured on the way."""
