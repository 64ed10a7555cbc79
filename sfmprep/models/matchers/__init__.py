"""Matches of two images' features, one file a matcher."""
