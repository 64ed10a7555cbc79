"""Keypoints of tracks moved to where their photographs agree."""
