"""Training of a run: its preparation, the loop and its events, predictions and final evaluation."""
