"""A real Triton Inference Server on this machine, from the binary that a wheel carries."""
