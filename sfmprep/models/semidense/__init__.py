"""Matches of two images without a detector."""
