"""Figures we publish: one module each, run as `python -m benchmarks.<name>`."""
