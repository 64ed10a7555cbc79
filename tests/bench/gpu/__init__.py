"""Tests, benchmark and training on a bare machine with one GPU, in one command."""
