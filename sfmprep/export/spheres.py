"""The panoramas themselves, for trainers that know the equirectangular camera.

    images/ images_2/ ...  the panoramas of which a view is registered, and reduced ones
    masks/ ...             STEM.png, black is ignored; only if any panorama has a mask
    transforms.json        their poses, camera_model EQUIRECTANGULAR
    sparse/points3D.ply    the points to start from

nerfstudio's rays (`cameras/cameras.py`): longitude is pi (x - cx) / fl_x to the right,
and latitude pi (cy - y) / fl_y up, so of a whole sphere fl_x is half the width and fl_y
the height. A part of a sphere has its principal point where the whole one's middle is.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycolmap
from PIL import Image

from sfmprep import coords
from sfmprep.capture.folder import photograph_folder
from sfmprep.capture.image_file import decode, read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import mask_file, read_mask_file
from sfmprep.capture.panorama import Panorama, View, part_of_sphere
from sfmprep.config import ExportConfig
from sfmprep.errors import ConfigError, ImageError
from sfmprep.export.listing import GENERATOR, write_json
from sfmprep.export.names import flat_names
from sfmprep.export.ply import write_ply
from sfmprep.geometry.normals import surface_shapes
from sfmprep.geometry.undistort import reduce_mask, reduce_pixels
from sfmprep.geometry.views import ModelArrays
from sfmprep.types import Float64

CLOUD = "sparse/points3D.ply"
_COPIED = (".jpg", ".jpeg", ".png")


def write_spheres(
    model: pycolmap.Reconstruction, images: ImageSet, folder: Path, config: ExportConfig
) -> Iterator[dict[str, str]]:
    """Writes the dataset of the panoramas, one after the other.

    Args:
        model: In the frame of the dataset; views of panoramas are among its images.
        images: The capture.
        folder: Where to; made here.
        config: Sizes and quality.

    Yields:
        The name of each panorama and that of its file, as soon as it is written.

    Raises:
        ConfigError: no view of a photograph that is a panorama is registered.
        ImageError: a panorama or its mask cannot be read.
        OSError: a file cannot be written.
    """
    poses = _poses(model, images)
    expect_spheres(images, poses)
    names = flat_names(sorted(poses))
    masks = {name: mask_file(images.mask_root, name) for name in names}
    with_masks = any(path is not None for path in masks.values())
    frames = []
    for name, file in names.items():
        intrinsics = _write_one(
            *(images, name, masks[name], folder, file, config), with_masks=with_masks
        )
        frame: dict[str, Any] = {
            "file_path": f"images/{file}",
            "transform_matrix": coords.opengl_from_opencv(poses[name]).tolist(),
            **intrinsics,
        }
        if with_masks:
            frame["mask_path"] = f"masks/{PurePosixPath(file).stem}.png"
        frames.append(frame)
        yield {name: file}
    (folder / CLOUD).parent.mkdir(parents=True, exist_ok=True)
    write_ply(folder / CLOUD, model, surface_shapes(ModelArrays.of(model)))
    content = {
        "generator": GENERATOR,
        "camera_model": "EQUIRECTANGULAR",
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": CLOUD,
        "frames": frames,
    }
    write_json(folder / "transforms.json", content)


def expect_spheres(images: ImageSet, names: Collection[str]) -> None:
    """Raises ConfigError unless a 360° photograph is among these panoramas, by name."""
    if not any(p.film is None and p.name in names for p in images.panoramas):
        raise ConfigError(
            "export.targets: nerfstudio-360 takes 360° photographs as they are, but"
            f" none of them is in {images.source} or has a pose (frames of a film are"
            " kept as views alone). Leave nerfstudio-360 out."
        )


def _poses(model: pycolmap.Reconstruction, images: ImageSet) -> Mapping[str, Float64]:
    """World from panorama [4, 4], by the first view of each that is registered."""
    by_name = {model.images[k].name: model.images[k] for k in model.reg_image_ids()}
    found = {}
    for panorama in images.panoramas:
        for name, view in _views(panorama):
            if panorama.film is None and name in by_name:
                pose = np.eye(4)
                pose[:3] = by_name[name].cam_from_world().inverse().matrix()
                pose[:3, :3] = pose[:3, :3] @ view.rig_from_view.T
                found[panorama.name] = pose
                break
    return found


def _views(panorama: Panorama) -> Iterator[tuple[str, View]]:
    for name, (yaw_deg, pitch_deg) in zip(
        panorama.views, panorama.directions, strict=True
    ):
        yield name, View(yaw_deg, pitch_deg)


def _write_one(
    images: ImageSet,
    name: str,
    mask: Path | None,
    folder: Path,
    file: str,
    config: ExportConfig,
    *,
    with_masks: bool,
) -> dict[str, float]:
    """Writes a panorama in all sizes; returns its intrinsics."""
    root, _ = photograph_folder(images.source)
    path = root / name
    try:
        info = read_info(path, keep_damaged=images.keep_damaged)
        found = decode(path, keep_damaged=images.keep_damaged)
        pixels = found.pixels
        used = np.ones(pixels.shape[:2], np.bool_)
        if mask is not None:
            used = read_mask_file(mask, info)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    height, width = pixels.shape[:2]
    for factor in (1, *config.downscales):
        suffix = "" if factor == 1 else f"_{factor}"
        target = folder / f"images{suffix}" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        is_alike = path.suffix.lower() == target.suffix.lower() in _COPIED
        if factor == 1 and is_alike and found.damage is None:
            shutil.copyfile(path, target)
        else:
            size = width // factor, height // factor
            reduced = pixels if factor == 1 else reduce_pixels(pixels, size)
            picture = Image.fromarray(reduced)
            if target.suffix.lower() == ".png":
                picture.save(target)
            else:
                quality = config.jpeg_quality
                picture.save(target, quality=quality, subsampling="4:4:4")
        if with_masks:
            grey = reduce_mask(used, factor).astype(np.uint8) * np.uint8(255)
            below = folder / f"masks{suffix}" / f"{target.stem}.png"
            below.parent.mkdir(exist_ok=True)
            Image.fromarray(grey).save(below)
    area = part_of_sphere(info)
    full_width, full_height = width / area.width, height / area.height
    return {
        "w": width,
        "h": height,
        "fl_x": full_width / 2,
        "fl_y": full_height,
        "cx": full_width * (0.5 - area.left),
        "cy": full_height * (0.5 - area.top),
    }
