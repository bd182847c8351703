"""The profile of a backbone on a data set: what training each stage alone gains over the linear probe."""
