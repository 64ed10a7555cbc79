"""Entry points for other programs."""
