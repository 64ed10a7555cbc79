"""Datasets that trainers open as they are."""
