"""Poses that are known before anything is mapped: files, conventions, times."""
