"""Pairs of images with known correspondences, to train on."""
