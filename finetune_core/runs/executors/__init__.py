"""Executors, which train runs in this process, on several devices, or with Ray."""
