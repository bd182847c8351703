"""Reports of comparisons: text and tables as HTML, one file with figures, and notebooks."""
