"""Folders that nerfstudio, gsplat, INRIA's 3DGS, Brush and COLMAP open as they are.

    images/              undistorted, upright, flat names: exactly the registered images
    images_2/ ...        the same names, reduced; every side a multiple of every factor
    masks/ masks_2/ ...  STEM.png, black is ignored; only if any image has a mask
    sparse/0/            cameras, images, points3D, rigs, frames (.bin), points3D.ply
    transforms.json      the same poses and points for nerfstudio
    world_from_sfm.json  the transform from the mapper's frame, if there is one
    georeference.json    where on the earth it is, if it is metric: see `place.py`
    tracks.npz           tracks and uncertainties, on request: see `tracks.py`
    dataset.json         original names, splits, uncertainties: see `listing.py`

Targets that need other files have a folder of their own below `targets/`, or the output
folder itself if they are named first (`targets.py` says what each needs): for 3dgs
masks become the alpha channel of RGBA images; for 3dgrut they lie beside the images as
STEM_mask.png; lichtfeld has no transforms.json; for postshot-inverted white is what
masks ignore, and there is no transforms.json; for colmap images/ has the photographs
byte by byte, sparse/0 their distorted cameras, and colmap_masks/ NAME.png; for
nerfstudio-360 the panoramas in place of their views: see `spheres.py`.

COLMAP model, JSON and PLY share one world frame, in all folders. Mirrored EXIF
orientations (2, 4, 5, 7) are turned but stay mirrored, as the reconstruction saw them.
A killed export never looks like a dataset: see `install.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import has_masks
from sfmprep.config import ExportConfig, Target
from sfmprep.dataset.world_frame import WorldFrame
from sfmprep.errors import ReconstructionError
from sfmprep.executors.protocol import Shards
from sfmprep.export.in_shards import write_in_shards
from sfmprep.export.install import WORLD, expect_replaceable, install, partial_export
from sfmprep.export.listing import LISTING, listing, write_json
from sfmprep.export.model import export_model, renamed, stored_model
from sfmprep.export.names import flat_names
from sfmprep.export.nerfstudio import transforms
from sfmprep.export.pixels import Destination, ImageWriter
from sfmprep.export.place import GEOREFERENCE, georeference_json
from sfmprep.export.ply import write_ply
from sfmprep.export.spheres import write_spheres
from sfmprep.export.taken_over import EarlierExport, EarlierImages, made_from
from sfmprep.export.targets import Layout, plan_folders
from sfmprep.export.tracks import TRACKS, write_tracks
from sfmprep.geometry.normals import SurfaceShapes, surface_shapes
from sfmprep.geometry.uncertainty import PoseUncertainty
from sfmprep.geometry.undistort import Undistortion
from sfmprep.geometry.views import ModelArrays
from sfmprep.progress import Progress, silent

_PLY = "sparse/0/points3D.ply"


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export wrote."""

    folder: Path
    folders: dict[Target, Path]  # what each target opens
    num_images: int
    num_points: int
    renamed: dict[str, str] = field(default_factory=dict)  # original to exported


def export_dataset(
    reconstruction: pycolmap.Reconstruction,
    images: ImageSet,
    out: Path,
    config: ExportConfig,
    *,
    world: WorldFrame | None = None,
    uncertainties: Mapping[str, PoseUncertainty] | None = None,
    earlier: EarlierExport | None = None,
    shards: Shards | None = None,
    progress: Progress = silent,
) -> ExportSummary:
    """Writes the registered images, cameras and points as datasets for trainers.

    Datasets that an earlier export wrote to `out` are replaced, together with the
    reduced copies that gsplat made of them, but stay whole until the new ones are
    complete. Other files in `out` stay as they are.

    Args:
        reconstruction: In pixels of the files on disk and in the frame of the dataset;
            points are taken as they are.
        images: The files on disk, and their masks.
        out: The folder; made if it is missing.
        config: Targets, sizes and quality.
        world: How that frame came about; only written down.
        uncertainties: Of the poses, by original name; may lack some.
        earlier: An export whose images are taken over where they would come out the
            same; None to make all.
        shards: Have the images written, if `earlier` tells what they are; None for
            threads of this process.
        progress: Wraps the loop over images.

    Raises:
        ConfigError: A target cannot read what is asked for, or wants panoramas and
            there are none; `out` has entries of a dataset that no export wrote, or
            holds the very images or masks to be exported.
        ImageError: An image or a mask is missing, unreadable, or has changed.
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
    originals = list(names)
    with_masks = has_masks(images)
    sure = {name: u for name, u in (uncertainties or {}).items() if name in names}
    folders = plan_folders(config, with_masks=with_masks)
    places = [folder.name for folder in folders]
    expect_replaceable(out, places, images)
    models = {}
    undistortions: Mapping[str, Undistortion] = {}
    shapes = None
    kinds = {folder.layout.pixels for folder in folders}
    if "upright" in kinds:
        exported = export_model(reconstruction, images, originals, config)
        models["upright"], undistortions = exported.model, exported.undistortions
        shapes = surface_shapes(ModelArrays.of(exported.model))
    if "stored" in kinds:
        models["stored"] = stored_model(reconstruction, images, originals)

    def keys(layout: Layout) -> dict[str, str]:
        if earlier is None:
            return {}
        return {
            name: made_from(
                *(earlier.contents[name], undistortions.get(name), layout, config),
                with_masks=with_masks,
            )
            for name in originals
        }

    with partial_export(out) as partial:
        built = partial / "new"
        destinations = [
            Destination(
                folder=built / folder.name,
                layout=folder.layout,
                names=folder.layout.file_names(names),
                made_from=keys(folder.layout),
                earlier=EarlierImages.read(earlier.folder / folder.name)
                if earlier
                else None,
            )
            for folder in folders
            if folder.layout.pixels != "spheres"
        ]
        # Before the images, because COLMAP is silent where a full disk cuts its files
        # short, and what writes images is not.
        for destination in destinations:
            model = renamed(models[destination.layout.pixels], destination.names)
            _write_model(destination, model, shapes, with_masks=with_masks)
            content = listing(
                *(reconstruction, destination.names, sure),
                num_points=model.num_points3D(),
                made_from=destination.made_from if earlier else None,
            )
            write_json(destination.folder / LISTING, content)
            _write_world(destination.folder, world, model)
            if config.tracks:
                known = {destination.names[k]: u for k, u in sure.items()}
                write_tracks(destination.folder / TRACKS, model, known)
        writer = ImageWriter(
            images=images,
            destinations=destinations,
            config=config,
            with_masks=with_masks,
        )
        if destinations and earlier is not None and shards is not None:
            write_in_shards(writer, originals, undistortions, shards, progress=progress)
        elif destinations:
            for _ in progress(
                writer.write(originals, undistortions), desc="export", total=len(names)
            ):
                pass
        for destination in destinations:
            os.utime(destination.folder / LISTING)  # later than all that it lists
        for folder in folders:
            if folder.layout.pixels == "spheres":
                place, files = built / folder.name, dict[str, str]()
                spheres = write_spheres(reconstruction, images, place, config)
                for written in progress(spheres, desc="export panoramas"):
                    files |= written
                content = listing(
                    *(reconstruction, files, {}),
                    num_points=reconstruction.num_points3D(),
                )
                write_json(place / LISTING, content)
                _write_world(place, world, reconstruction)
        install(built, out, places, partial / "old")
    file_names = destinations[0].names if destinations else files
    kind = folders[0].layout.pixels
    return ExportSummary(
        folder=out,
        folders={t: out / folder.name for folder in folders for t in folder.targets},
        num_images=len(file_names),
        num_points=models.get(kind, reconstruction).num_points3D(),
        renamed={old: new for old, new in file_names.items() if old != new},
    )


def _write_world(
    folder: Path, world: WorldFrame | None, model: pycolmap.Reconstruction
) -> None:
    if world is None:
        return
    write_json(folder / WORLD, world.to_json())
    if world.origin is not None:
        write_json(folder / GEOREFERENCE, georeference_json(world.origin, model))


def _write_model(
    destination: Destination,
    model: pycolmap.Reconstruction,
    shapes: SurfaceShapes | None,
    *,
    with_masks: bool,
) -> None:
    """Writes cameras, poses and points, and what else tells a trainer of them."""
    sparse = destination.folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    model.write_binary(sparse)
    if destination.layout.pixels == "upright" and shapes is not None:
        write_ply(destination.folder / _PLY, model, shapes)
    if destination.layout.has_json:
        content = transforms(model, ply=_PLY, with_masks=with_masks)
        write_json(destination.folder / "transforms.json", content)
