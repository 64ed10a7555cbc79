"""Cameras and points of a result in the browser."""
