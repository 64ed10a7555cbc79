"""Poses against a reference."""
