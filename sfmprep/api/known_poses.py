"""Models and datasets from poses that are known already, however roughly."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pycolmap

from sfmprep.api.poses import Database
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, KnownPosesConfig, MappingConfig, Recipe
from sfmprep.config.load import load_recipe
from sfmprep.devices import pick_device
from sfmprep.known_poses import read
from sfmprep.known_poses.poses import Axes, Direction, KnownPoses
from sfmprep.known_poses.trajectory import Trajectory
from sfmprep.mapping import from_poses
from sfmprep.mapping.from_poses import PoseChanges
from sfmprep.pipelines import reconstruct as pipeline
from sfmprep.pipelines.refine_poses import with_poses
from sfmprep.progress import Progress, silent
from sfmprep.report.schema import Report


def read_poses(
    path: str | Path, *, axes: Axes | None = None, direction: Direction | None = None
) -> KnownPoses | Trajectory:
    """Reads known poses of images, or a trajectory of poses by time.

    Args:
        path: A COLMAP model, a transforms.json, a table with the header
            name,x,y,z,qw,qx,qy,qz (.csv), or a trajectory of TUM.
        axes: Of the cameras, where they are not those of the format.
        direction: What a rotation and a vector of table or trajectory do.

    Raises:
        ConfigError: it is none of these or damaged, a pose is no rotation, or a name
            comes twice.
    """
    return read.read_poses(Path(path), axes=axes, direction=direction)


def map_from_poses(
    database: Database,
    images: ImageSet,
    poses: KnownPoses | Trajectory,
    *,
    time_offset: float | None = None,
    config: MappingConfig | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[list[pycolmap.Reconstruction], PoseChanges]:
    """As `map`, from given poses, whose world and scale are kept; in this process.

    Args:
        database: Verified; it is not changed.
        images: The capture.
        poses: Of these images, however rough; their names may lack folders.
        time_offset: Seconds added to the times of images, for a trajectory; None to
            find it.
        config: Thresholds of the mapper.
        seed: Of everything random.
        progress: Wraps the loops; tqdm fits.

    Returns:
        Models, largest first, none where too little was verified; and how the given
        poses compare with it.

    Raises:
        ConfigError: the poses are of other images, or contradict all photographs.
        ReconstructionError: an adjustment failed, or the model is too small.
    """
    cameras: DatabaseConfig = database.config
    with tempfile.TemporaryDirectory(prefix="sfmprep-") as folder:
        return from_poses.map_from_poses(
            *(database.path, images, Path(folder), config or MappingConfig(), poses),
            where="given",
            time_offset=time_offset,
            cameras=cameras,
            scales=dict(database.scales),
            seed=seed,
            progress=progress,
        )


def refine_poses(
    folder: str | Path,
    poses: str | Path,
    out: str | Path,
    recipe: Recipe | str = "splat",
    *,
    axes: Axes | None = None,
    direction: Direction | None = None,
    time_offset: float | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Report:
    """Photographs and rough poses in, dataset out, as `sfmprep refine` does.

    World and scale of the poses are kept.

    Args:
        folder: Photographs, as for `reconstruct`.
        poses: As for `read_poses`.
        out: A new folder, or that of an earlier run.
        recipe: A recipe, or the name or file of one.
        axes: As for `read_poses`.
        direction: Likewise.
        time_offset: As for `map_from_poses`.
        device: As in `extract`.
        progress: Wraps the loops; tqdm fits.

    Returns:
        What was found; it is also in `out/report.json` and `out/report.html`.

    Raises:
        SfmprepError: see `sfmprep.errors`; what is done until then is kept.
    """
    given = KnownPosesConfig(
        path=Path(poses).resolve(),
        axes=axes or "auto",
        direction=direction or "auto",
        time_offset=time_offset,
    )
    return pipeline.reconstruct(
        Path(folder),
        Path(out),
        with_poses(load_recipe(recipe) if isinstance(recipe, str) else recipe, given),
        device=pick_device(device),
        progress=progress,
    )
