"""Which cameras of a capture were fixed to each other.

By COLMAP's `rig_config.json`, or because they are views of one panorama.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.panorama import panorama_rigs
from sfmprep.config import Recipe
from sfmprep.errors import ConfigError
from sfmprep.known_poses.rigs import rigs_of_poses
from sfmprep.pipelines.develop import panorama_views
from sfmprep.types import Pair


def find_rigs(images: ImageSet, recipe: Recipe) -> list[dict[str, Any]]:
    """The rigs of a capture, as COLMAP's `rig_config.json` has them; none is usual.

    They are those of its panoramas, and of the file that the recipe names, or else of
    the model whose poses are given; beside panoramas these are taken for the same.

    Raises:
        ConfigError: the file cannot be read, is none of rigs, or names a camera that
            took none of the images.
    """
    found = panorama_rigs(images.panoramas, panorama_views(recipe.panorama))
    if recipe.rigs is not None:
        found += _read(recipe.rigs, images)
    elif recipe.known_poses is not None and not found:  # else they are these
        found += rigs_of_poses(recipe.known_poses.path, images.names)
    return found


def views_at_one_spot(images: ImageSet) -> Iterator[Pair]:
    """Pairs of images that were cut from one panorama: they tell no depth."""
    for panorama in images.panoramas:
        yield from itertools.combinations(sorted(panorama.views), 2)


def _read(path: Path, images: ImageSet) -> list[dict[str, Any]]:
    try:
        configs = pycolmap.read_rig_config(path)
        content: list[dict[str, Any]] = json.loads(path.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"rigs: {path} cannot be read as COLMAP's rig_config.json ({error})."
            " Correct the path or the file."
        ) from error
    if not configs:
        raise ConfigError(
            f"rigs: {path} holds no rig. Expected a list of them, as COLMAP's"
            " rig_config.json is."
        )
    for camera in (camera for config in configs for camera in config.cameras):
        prefix = camera.image_prefix
        if not any(name.startswith(prefix) for name in images.names):
            folders = sorted(
                {name.rpartition("/")[0] or "no sub-folder" for name in images.names}
            )
            raise ConfigError(
                f"rigs: {path} names the camera {prefix!r}, but no image's name begins"
                f" so. Images are in: {', '.join(folders[:6])}."
            )
    return content
