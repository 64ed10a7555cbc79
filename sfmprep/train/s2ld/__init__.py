"""Training of S2LD."""
