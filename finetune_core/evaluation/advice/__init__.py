"""Which backbone and which cut, before anything is trained: cross-validated linear probes, and what training would take."""
