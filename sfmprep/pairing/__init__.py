"""Which pairs of images are matched."""
