"""Photographs in; camera poses and a sparse cloud for splat training out.

Importing this package imports neither torch nor OpenCV nor nerfstudio.
"""

import PIL.Image  # noqa: F401  # first: Pillow after pycolmap has been seen to abort

from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.errors import (
    ConfigError,
    DeviceError,
    ImageError,
    ReconstructionError,
    SfmprepError,
    StoreError,
    WeightsError,
)

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DeviceError",
    "ImageError",
    "Recipe",
    "ReconstructionError",
    "SfmprepError",
    "StoreError",
    "WeightsError",
    "__version__",
    "load_recipe",
]
