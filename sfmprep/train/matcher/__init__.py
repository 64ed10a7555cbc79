"""Training of the compact features' matcher."""
