"""Keypoints and descriptors, one file an extractor."""
