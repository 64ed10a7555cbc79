"""Training of the compact features."""
