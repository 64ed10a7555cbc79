"""Captures of a made city, as large as one likes: what each stage takes, and how it grows."""
