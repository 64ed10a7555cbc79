"""Weights of networks: their sources and licences, and whether they are intact."""

from sfmprep.weights.cache import ResolvedWeights, cache_folder, file_sha256
from sfmprep.weights.load import load_metadata, load_strict, load_tensors
from sfmprep.weights.registry import WEIGHTS, WHEEL, Weights
from sfmprep.weights.resolve import is_offline, resolve_weights, weights_here

__all__ = [
    "WEIGHTS",
    "WHEEL",
    "ResolvedWeights",
    "Weights",
    "cache_folder",
    "file_sha256",
    "is_offline",
    "load_metadata",
    "load_strict",
    "load_tensors",
    "resolve_weights",
    "weights_here",
]
