"""The COLMAP database and the models that are made from it."""
