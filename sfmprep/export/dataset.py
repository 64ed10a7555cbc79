"""One folder that nerfstudio, gsplat and INRIA's 3DGS open as it is.

    images/          undistorted, upright, flat names: exactly the registered images
    images_2/ ...    the same names, reduced; every side is a multiple of every factor
    sparse/0/        cameras, images, points3D, rigs, frames (.bin), points3D.ply
    transforms.json  the same poses and points for nerfstudio
    names.json       exported to original name, only if a name had to be changed

COLMAP model, JSON and PLY share one world frame. Mirrored EXIF orientations (2, 4, 5,
7) are turned but stay mirrored, as the reconstruction saw them.

The dataset is built in `.partial-export` and then moved into place. While that goes on
transforms.json has no frames, and sparse/ is taken away first and comes back last, so
a killed export never looks like a dataset; the next one cleans up after it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pycolmap

from sfmprep.config import ExportConfig
from sfmprep.errors import ConfigError, ReconstructionError, StoreError
from sfmprep.export.model import export_model
from sfmprep.export.names import flat_names
from sfmprep.export.nerfstudio import GENERATOR, transforms
from sfmprep.export.pixels import ImageWriter
from sfmprep.export.ply import write_ply
from sfmprep.images import ImageSet
from sfmprep.progress import Progress, silent

_log = logging.getLogger(__name__)

_PARTIAL = ".partial-export"
_REDUCED = ("images_2", "images_4", "images_8")
_ENTRIES = ("sparse", "images", *_REDUCED, "names.json")
# gsplat fills these from images/ and never renews them: stale once images/ changes.
_CACHES = tuple(f"{name}_png" for name in _REDUCED)
_PLY = "sparse/0/points3D.ply"


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export wrote."""

    folder: Path
    num_images: int
    num_points: int
    renamed: dict[str, str] = field(default_factory=dict)  # original to exported


def export_dataset(
    reconstruction: pycolmap.Reconstruction,
    images: ImageSet,
    out: Path,
    config: ExportConfig,
    *,
    progress: Progress = silent,
) -> ExportSummary:
    """Writes the registered images, cameras and points as a dataset for trainers.

    A dataset that an earlier export wrote to `out` is replaced, together with the
    reduced copies that gsplat made of it, but stays whole until the new one is
    complete. Other files in `out` stay as they are.

    Args:
        reconstruction: In pixels of the files on disk; point colours are taken as
            they are.
        images: The files on disk.
        out: The folder; made if it is missing.
        config: Sizes and quality.
        progress: Wraps the loop over images.

    Raises:
        ConfigError: `out` has entries of a dataset that no export wrote, or holds the
            very images to be exported.
        ImageError: An image is missing, unreadable, or has changed.
        ReconstructionError: No image is registered, no point is left, or the images
            are not those of the model.
        StoreError: `out` cannot be written, for instance because the disk is full.
    """
    names = flat_names(
        sorted(reconstruction.images[i].name for i in reconstruction.reg_image_ids())
    )
    if not names:
        raise ReconstructionError(
            "the model has no registered image, so there is nothing to export; see "
            "the mapper's log for the reason"
        )
    _expect_replaceable(out, images)
    exported = export_model(reconstruction, images, names, config)
    renamed = {old: new for old, new in names.items() if old != new}
    partial = out / _PARTIAL
    with _explained(out):
        if partial.exists():
            shutil.rmtree(partial)
        (partial / "sparse" / "0").mkdir(parents=True)
        try:
            # First, because COLMAP is silent where a full disk cuts its files short,
            # and the images that follow are not.
            exported.model.write_binary(partial / "sparse" / "0")
            write_ply(partial / _PLY, exported.model)
            writer = ImageWriter(
                folder=partial, images=images, names=names, config=config
            )
            for _ in progress(
                writer.write(exported.undistortions), desc="export", total=len(names)
            ):
                pass
            if renamed:
                originals = {new: old for old, new in renamed.items()}
                _write_json(partial / "names.json", originals)
            _write_json(
                partial / "transforms.json", transforms(exported.model, ply=_PLY)
            )
            _install(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _log.info("%s: %d images in a dataset", out, len(names))
    return ExportSummary(
        folder=out,
        num_images=len(names),
        num_points=exported.model.num_points3D(),
        renamed=renamed,
    )


def _expect_replaceable(out: Path, images: ImageSet) -> None:
    """Raises ConfigError unless all that would be replaced came from an export."""
    entries = ("transforms.json", *_ENTRIES)
    found = [name for name in entries if (out / name).exists()]
    if found and not _is_export(out / "transforms.json"):
        raise ConfigError(
            f"{out} has {', '.join(found)} that sfmprep did not write and would "
            "replace; choose another folder for the dataset"
        )
    root = images.root.resolve()
    for name in (*_ENTRIES, *_CACHES):
        entry = (out / name).resolve()
        if root == entry or entry in root.parents:
            raise ConfigError(
                f"{images.root} is to be exported to {out}, which would replace it; "
                "choose another folder for the dataset"
            )


def _is_export(path: Path) -> bool:
    """Whether this transforms.json is ours; it is also there while one is replaced."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("generator") == GENERATOR


def _install(partial: Path, out: Path) -> None:
    """Replaces the old dataset in `out` by the one in `partial`."""
    _write_json(partial / "begun.json", {"generator": GENERATOR, "frames": []})
    (partial / "begun.json").replace(out / "transforms.json")
    old = partial / "old"
    old.mkdir()
    for name in (*_ENTRIES, *_CACHES):
        if (out / name).exists():
            (out / name).rename(old / name)
    for name in reversed(_ENTRIES):
        if (partial / name).exists():
            (partial / name).rename(out / name)
    (partial / "transforms.json").replace(out / "transforms.json")


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turns what the file system refuses into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{out}: the dataset cannot be written ({error}); free some space or "
            "choose a folder that can be written, and run the export again"
        ) from error
