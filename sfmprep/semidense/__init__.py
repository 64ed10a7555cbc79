"""Matching without a detector, and how its points become tracks."""
