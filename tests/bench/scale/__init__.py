"""Captures of a made city, of any size: what each stage takes, and how it grows."""
