"""From matches to poses."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pycolmap

from sfmprep.api.given import MAX_SIZE, in_folder, max_size_of, model_of
from sfmprep.budget import Budget
from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    DatabaseConfig,
    DisConfig,
    FlowConfig,
    MappingConfig,
    MotionMasksConfig,
    OutlierConfig,
    RefinementConfig,
)
from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.evaluation.poses import Evaluation, evaluate_model
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.files import not_written
from sfmprep.frontend.motion_masks import find_motion, write_masks
from sfmprep.geometry.uncertainty import pose_uncertainties
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.adjust import refine_model
from sfmprep.mapping.failure import explain_failure
from sfmprep.mapping.models import read_packed
from sfmprep.mapping.outliers import find_outliers, without_images
from sfmprep.mapping.project import fill_project
from sfmprep.mapping.verify import VerifiedPairs, read_verified, verify_matches
from sfmprep.mapping.view_graph import PairTable, read_pair_table
from sfmprep.models.build import build_flow_estimator
from sfmprep.models.protocols import FlowEstimator
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines.apart import apart, map_into
from sfmprep.pipelines.artefacts import read_result
from sfmprep.progress import Progress, silent
from sfmprep.refinement.refine import refine_keypoints
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Database:
    """A COLMAP database whose pairs are verified, and what that found."""

    path: Path
    verified: VerifiedPairs
    config: DatabaseConfig  # what is known of cameras, and thresholds
    scales: Mapping[str, float]  # pixels of a file for one of the features, by image


def verify(
    images: ImageSet,
    features: FeatureStore,
    matches: MatchReader,
    database: str | Path,
    *,
    pairs: Pairs | None = None,
    config: DatabaseConfig | None = None,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress = silent,
) -> Database:
    """Writes a COLMAP database and verifies the geometry of all matched pairs.

    A database that exists is filled in place, as `fill_project` says: its images, ids
    and cameras stay, its keypoints and matches are replaced. No copy is made of it.

    Args:
        images: The capture; images without features are left out.
        features: Keypoints.
        matches: Of the pairs.
        database: Where the database lies or will.
        pairs: Those that count; None for all that have matches.
        config: Camera model, which images share a camera, thresholds.
        seed: Of RANSAC.
        num_threads: That verify; None for all cores.
        progress: Wraps the loops over pairs; tqdm fits.

    Returns:
        Where it lies, and how many pairs were verified; that may be none.

    Raises:
        StoreError: the file is not a COLMAP database, is locked or cannot be written.
        ConfigError: its images are not these, or images that differ in size are to
            share a camera.
    """
    path, config = in_folder(database), config or DatabaseConfig()
    pairs = Pairs.of(matches.pairs()) if pairs is None else pairs
    fill_project(
        *(path, images, features, matches, pairs, config),
        backup=False,
        progress=progress,
    )
    scales = reduction_scales(images, max_size_of(features))
    verify_matches(
        *(path, pairs, config),
        scales=scales,
        seed=seed,
        num_threads=num_threads,
        progress=progress,
    )
    found = read_verified(path)
    return Database(path=path, verified=found, config=config, scales=scales)


def view_graph(database: Database | str | Path, images: ImageSet) -> PairTable:
    """How many matches and inliers each pair of images has.

    Raises:
        StoreError: `database` is not one of COLMAP, or is locked.
    """
    return read_pair_table(path_of(database), images.names)


def map(
    database: Database | str | Path,
    images: ImageSet,
    *,
    config: MappingConfig | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Recovers poses and points by COLMAP from verified pairs, in another process.

    Args:
        database: Verified; it is not changed. As `verify` returned it, it tells the
            scale of its features, which thresholds follow, and what cameras are.
        images: The capture, for the points' colours.
        config: Which mapper, and its thresholds.
        seed: Of everything random in COLMAP.
        progress: Wraps the loop over images as they are registered; tqdm fits.

    Returns:
        One model or more, most registered images first. Poses are `cam_from_world`.

    Raises:
        ReconstructionError: there is no model, and why; or COLMAP's process died.
        ConfigError: `config` asks for no mapper.
    """
    config, path = config or MappingConfig(), path_of(database)
    if config.type == "none":
        raise ConfigError(
            "config.type is 'none' but expected 'incremental' or 'global'"
        )
    cameras, scales = DatabaseConfig(), dict.fromkeys(images.names, 1.0)
    if isinstance(database, Database):
        cameras, scales = database.config, dict(database.scales)
    with tempfile.TemporaryDirectory(prefix="sfmprep-") as folder:
        packed = Path(folder) / "models.zip"
        num_models, _ = apart(
            *(map_into, packed, path, images, config, cameras, scales, seed, Budget()),
            progress=progress,
        )
        if not num_models:
            raise ReconstructionError(
                explain_failure(images, read_verified(path), path)
            )
        return read_packed(packed)


def drop_outliers(
    model: pycolmap.Reconstruction, *, config: OutlierConfig | None = None
) -> tuple[pycolmap.Reconstruction, dict[str, str]]:
    """Takes out the images whose pose is not supported.

    One of them ruins the scale that a trainer gives the scene.

    Returns:
        A copy of the model, and the reason for each image that is left out, by name.
    """
    arrays = ModelArrays.of(model)
    uncertainties = pose_uncertainties(model, arrays)
    reasons = find_outliers(arrays, config or OutlierConfig(), uncertainties)
    return without_images(model, reasons), reasons


def mask_motion(
    images: ImageSet,
    models: Sequence[pycolmap.Reconstruction],
    folder: str | Path,
    flow: FlowConfig | FlowEstimator | None = None,
    *,
    max_size: int = 640,
    num_neighbours: int = 8,
    device: str = "cpu",
    progress: Progress = silent,
) -> ImageSet:
    """Writes masks of what moves, and returns the capture with them.

    What no point that stands still explains is black, and what the images' own masks
    leave out. Images should be taken in small steps, such as frames of a film.

    Args:
        images: The photographs.
        models: Their poses, found without the masks; images without are used whole.
        folder: Where the masks go, `a.jpg.png` for `a.jpg`; made if it is missing.
        flow: Follows the pixels: a configuration or an object; None for `Dis()`.
        max_size: Longer side in pixels that larger images are reduced to.
        num_neighbours: How many others each image is held against, 2 or more.
        device: Where a network runs.
        progress: Wraps the loop over images; tqdm fits.

    Raises:
        ConfigError: a number is out of range.
        ImageError: a given mask cannot be used.
        StoreError: the masks cannot be written.
        WeightsError: those of the flow cannot be had.
    """
    try:
        config = MotionMasksConfig(max_size=max_size, neighbours=num_neighbours)
    except ValueError as error:
        raise ConfigError(
            f"{max_size=} and {num_neighbours=} but expected 1 and 2 or more"
        ) from error
    flow = DisConfig() if flow is None else flow
    estimator = model_of(flow, build_flow_estimator, device, "auto")
    arrays = [ModelArrays.of(model) for model in models]
    still = dict(find_motion(images, arrays, estimator, config, progress=progress))
    try:
        write_masks(images, still, Path(folder))
    except OSError as error:
        raise not_written(Path(folder), error) from error
    return replace(images, mask_root=Path(folder))


def refine(
    model: pycolmap.Reconstruction,
    images: ImageSet,
    *,
    config: RefinementConfig | None = None,
    mapping: MappingConfig | None = None,
    max_size: int | None = MAX_SIZE,
    num_workers: int | None = None,
    known_centres: Collection[int] = (),
    progress: Progress = silent,
) -> pycolmap.Reconstruction:
    """Moves keypoints to where the photographs of their track agree, and adjusts.

    Args:
        model: Poses and points, good to a few pixels; not changed.
        images: The capture.
        config: How far a keypoint may move.
        mapping: Whether principal points move in the last bundle adjustment.
        max_size: Longer side in pixels that images were reduced to for their features;
            None for full resolution.
        num_workers: Threads that decode; None: one a core, at most 8.
        known_centres: Ids of cameras whose principal point is known, and stays.
        progress: Wraps the loop over photographs; tqdm fits.

    Returns:
        A refined copy; a photograph that cannot be read keeps its keypoints, which is a
        warning in the log.

    Raises:
        ReconstructionError: the bundle adjustment found no solution.
    """
    model = pycolmap.Reconstruction(model)
    refine_keypoints(
        *(model, ModelArrays.of(model), images, config or RefinementConfig()),
        max_size=max_size,
        num_workers=num_workers,
        progress=progress,
    )
    return refine_model(
        *(model, mapping or MappingConfig()), known_centres=known_centres
    )


def read_model(path: str | Path) -> pycolmap.Reconstruction:
    """Reads a COLMAP model, or the largest one of an output folder of `reconstruct`.

    Raises:
        ReconstructionError: `path` holds neither, or the model is damaged.
    """
    return read_result(Path(path))


def evaluate(
    model: pycolmap.Reconstruction, reference: str | Path | Mapping[str, CameraPose]
) -> Evaluation:
    """Compares the poses of a model with known ones; definitions: `evaluation.poses`.

    Args:
        model: Its images are those of the reference that have the same name.
        reference: Poses by image name; or a reference.json, a folder of `.camera`
            files, or a COLMAP model.

    Raises:
        ConfigError: the reference cannot be read, has fewer than two images, or none in
            common with the model.
    """
    if isinstance(reference, str | Path):
        reference = read_reference(Path(reference))
    return evaluate_model(model, reference)


def path_of(database: Database | str | Path) -> Path:
    """Where a database lies."""
    return database.path if isinstance(database, Database) else Path(database)
