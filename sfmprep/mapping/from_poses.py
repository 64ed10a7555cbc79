"""Models from poses that are given, of any quality: no start is searched, none grown.

pairs and given poses -> poses that fit both (`pose_graph`) -> points, adjusted
-> images without a given pose -> the frame and scale of what was given (`alignment`)
-> a last adjustment with the given centres as priors, as far as they proved good
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.errors import ReconstructionError, StoreError
from sfmprep.files import write_text
from sfmprep.geometry.adjustment import config_of
from sfmprep.geometry.robust import LOSS_SCALE, MEAN_LENGTH
from sfmprep.known_poses.panoramas import of_photographs, turns_of
from sfmprep.known_poses.poses import KnownPoses
from sfmprep.known_poses.trajectory import Trajectory, image_times
from sfmprep.mapping.adjust import Refine, adjust
from sfmprep.mapping.alignment import Alignment, align
from sfmprep.mapping.calibrate import calibrate_pairs
from sfmprep.mapping.carry_over import open_cache
from sfmprep.mapping.check_poses import check_poses, find_time_offset
from sfmprep.mapping.mapper import finished, prepared
from sfmprep.mapping.pose_graph import Edges, fit_poses, read_edges
from sfmprep.mapping.rounds import go_on
from sfmprep.mapping.runs import Run, incremental_options, refine_globally
from sfmprep.mapping.solver import choose_solver
from sfmprep.mapping.view_reader import Scales
from sfmprep.progress import Progress, silent
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_LOSS_SCALE_PX = 4.0  # of the first adjustment, in which points may be far off
_FIRST_TOLERANCE = 1e-4  # of that: others follow, without the points that do not fit
_MIN_FOR_PRIORS = 3  # centres, which are to fix a frame
_MAX_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class PoseChange:
    """What became of one given pose."""

    name: str
    rotation_deg: float  # between the given pose and that of the model
    distance: float  # likewise, in units of the given poses
    is_contradicted: bool  # off by far more than most


@dataclass(frozen=True, kw_only=True)
class PoseChanges:
    """How given poses compare with those that the photographs tell."""

    source: str  # what the file is
    convention: str  # how its poses were read
    time_offset_s: float | None  # of a trajectory: added to the times of images
    num_given: int  # poses of images of the capture
    rotation_stddev_deg: float  # of the given rotations, in each axis
    position_stddev: float  # of the given centres, in each axis
    changes: tuple[PoseChange, ...]
    added: tuple[str, ...]  # images with a pose that had none
    lost: tuple[str, ...]  # images that had one, and have none

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all.

        Raises:
            StoreError: see `write_text`.
        """
        write_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=1))

    @staticmethod
    def read(path: Path) -> PoseChanges:
        """Reads what `write` wrote.

        Raises:
            StoreError: the file is damaged, or there is none.
        """
        try:
            found = json.loads(path.read_text("utf-8"))
            changes = tuple(PoseChange(**change) for change in found.pop("changes"))
            found |= {key: tuple(found[key]) for key in ("added", "lost")}
            return PoseChanges(**found, changes=changes)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{path} is missing or damaged ({error}). Delete mapped.zip beside it;"
                " the next run makes both again."
            ) from error


def map_from_poses(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    poses: KnownPoses | Trajectory,
    *,
    where: str,
    time_offset: float | None = None,
    cameras: DatabaseConfig | None = None,
    scales: Scales | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[list[pycolmap.Reconstruction], PoseChanges]:
    """Recovers poses and points from a verified database and given poses.

    Given poses are weighted by how well they prove to fit. Those of images that the
    pairs contradict are replaced, and images that have none get one. The largest model
    has the frame and the scale of what was given.

    Args:
        database: A COLMAP database whose pairs are verified; it is not changed.
        images: The capture, for the points' colours.
        folder: Where the models go, see `map_images`.
        config: Thresholds of the mapper.
        poses: What is given.
        where: The file that it is from, for messages.
        time_offset: Seconds that are added to the times of images, for a trajectory;
            None to find it.
        cameras: What is known of cameras and may be refined; None for the defaults.
        scales: See `Scales`; None for 1.
        seed: Of everything random.
        progress: Wraps the loops.

    Returns:
        Models, largest first; none where too little was verified. And what became of
        the given poses.

    Raises:
        ConfigError: the poses are not of these images or contradict them, see
            `of_images`, `image_times` and `check_poses`.
        ReconstructionError: see `map_images`.
    """
    cameras = cameras or DatabaseConfig()
    names = images.names
    panoramas = images.panoramas
    given = None
    told: Mapping[str, pycolmap.Camera] = {}
    if isinstance(poses, KnownPoses):
        given = of_photographs(poses, names, panoramas, where)
        told = given.cameras
    with prepared(
        *(database, images, folder, config, cameras, scales, seed, progress),
        given=told,
    ) as (run, lenses):
        edges = _relative_poses(run, {name: row for row, name in enumerate(names)})
        offset = None
        if isinstance(poses, Trajectory):
            times = image_times(names, poses)
            turns = turns_of(names, panoramas)
            offset = time_offset
            if offset is None:
                offset = find_time_offset(poses, names, times, edges, turns)
                logger.info(
                    "poses %s: the clock is %.0f ms ahead of that of the images",
                    *(where, 1000 * offset),
                )
            at = poses.at(names, times, offset)
            at = replace(at, turns=turns_of(at.names, panoramas))
            given = of_photographs(at, names, panoramas, where)
        assert given is not None
        row_of = {name: row for row, name in enumerate(given.names)}
        edges = edges.of({names.index(name): row for name, row in row_of.items()})
        given = check_poses(given, edges, where).poses
        model = _first_model(run, given, edges)
        models = [] if model is None else _with_others(run, model, len(names))
    if not models:
        return [], _changes(given, offset, None, None)
    models = finished(models, lenses, images, folder, config, cameras, told)
    alignment = _to_given(models[0], given, cameras.refine)
    models[0].write(folder / "0")
    changes = _changes(given, offset, models[0], alignment)
    _log(changes, where)
    return models, changes


def map_from_start(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    poses: KnownPoses,
    *,
    cameras: DatabaseConfig | None = None,
    scales: Scales | None = None,
    focal_lengths: Mapping[str, float] = MappingProxyType({}),
    seed: int = 0,
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Recovers poses and points from poses that are a start and nothing else.

    As `map_from_poses`, but their frame and scale are not kept, and once there are
    points they count no more.

    Args:
        database: See `map_from_poses`, like the others.
        images: The capture.
        folder: Where the models go.
        config: Thresholds of the mapper.
        poses: Of images of the capture, in a convention that is told.
        cameras: What is known of cameras.
        scales: See `Scales`.
        focal_lengths: See `map_images`.
        seed: Of everything random.
        progress: Wraps the loops.

    Returns:
        Models, largest first; none where too little was verified.

    Raises:
        ReconstructionError: see `map_images`.
    """
    cameras = cameras or DatabaseConfig()
    with prepared(
        *(database, images, folder, config, cameras, scales, seed, progress),
        focal_lengths=focal_lengths,
    ) as (run, lenses):
        edges = _relative_poses(
            run, {name: row for row, name in enumerate(poses.names)}
        )
        model = _first_model(run, poses, edges)
        models = [] if model is None else _with_others(run, model, len(images.names))
    return finished(models, lenses, images, folder, config, cameras) if models else []


def _relative_poses(run: Run, rows: dict[str, int]) -> Edges:
    """The relative poses of all pairs that agree on one, with these cameras."""
    path = run.folder / "graph.db"
    shutil.copyfile(run.database, path)
    with pycolmap.Database.open(path) as database:
        for camera in database.read_all_cameras():
            camera.has_prior_focal_length = True  # there is no better one
            database.update_camera(camera)
    calibrate_pairs(
        path,
        max_error_px=run.cameras.max_error_px,
        scales=run.scales,
        seed=run.seed,
        progress=run.progress,
    )
    return read_edges(path, rows)


def _first_model(
    run: Run, given: KnownPoses, edges: Edges
) -> pycolmap.Reconstruction | None:
    """Images with given poses, and the points that they see; None for no points."""
    rotations, centres = fit_poses(edges, *given.cam_from_world())
    with pycolmap.Database.open(run.database) as opened:
        cache = open_cache(opened, run.config.min_num_matches)
    model = pycolmap.Reconstruction()
    model.load(cache)
    row_of = {name: row for row, name in enumerate(given.names)}
    for image in model.images.values():
        row = row_of.get(image.name)
        if row is not None:
            turn = pycolmap.Rotation3d(rotations[row])
            pose = pycolmap.Rigid3d(turn, -rotations[row] @ centres[row])
            model.frames[image.frame_id].set_cam_from_world(image.camera_id, pose)
            model.register_frame(image.frame_id)
    if model.num_reg_images() < 2:
        return None
    pipeline = incremental_options(run)
    options, triangulation = pipeline.get_mapper(), pipeline.get_triangulation()
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(model)
    ids = sorted(model.reg_image_ids())
    for image_id in run.progress(ids, desc="map", total=len(ids)):
        mapper.triangulate_image(triangulation, image_id)
    if not model.num_points3D():
        mapper.end_reconstruction(True)
        return None
    adjust(
        model,
        refine=run.cameras.refine,
        loss_scale=_LOSS_SCALE_PX * run.scale,
        tolerance=_FIRST_TOLERANCE,
    )
    mapper.filter_points(options)
    mapper.retriangulate(triangulation)
    refine_globally(mapper, pipeline, options, triangulation)
    mapper.end_reconstruction(False)
    return model if model.num_reg_images() >= 2 and model.num_points3D() else None


def _with_others(
    run: Run, model: pycolmap.Reconstruction, num_images: int
) -> list[pycolmap.Reconstruction]:
    """Also the images that have no pose yet, where pairs allow it."""
    return [model] if model.num_reg_images() == num_images else go_on(run, [model])


def _to_given(
    model: pycolmap.Reconstruction, given: KnownPoses, refine: Refine
) -> Alignment | None:
    """Moves a model into the frame of given poses, and adjusts it with these.

    Returns:
        How they lie; None with fewer than two of them in the model.
    """
    both = _posed(model, given)
    if len(both) < 2:
        return None
    model.transform(_aligned(model, given, both).given_from_own)
    alignment = _aligned(model, given, both)
    trusted = [
        pair
        for pair, off in zip(both, alignment.contradicted(), strict=True)
        if not off
    ]
    if len(trusted) >= _MIN_FOR_PRIORS:
        _adjust_with_priors(model, given, trusted, alignment.position_stddev, refine)
        alignment = _aligned(model, given, both)
        if len(trusted) < len(both):  # those left out may turn what the rest fixes
            model.transform(alignment.given_from_own)
            alignment = _aligned(model, given, both)
    return alignment


def _posed(model: pycolmap.Reconstruction, given: KnownPoses) -> list[tuple[int, int]]:
    """Ids of images and rows of their given poses."""
    row_of = {name: row for row, name in enumerate(given.names)}
    return [
        (key, row_of[model.images[key].name])
        for key in sorted(model.reg_image_ids())
        if model.images[key].name in row_of
    ]


def _aligned(
    model: pycolmap.Reconstruction, given: KnownPoses, both: Sequence[tuple[int, int]]
) -> Alignment:
    images, rows = [model.images[key] for key, _ in both], [row for _, row in both]
    own = (
        np.array([image.cam_from_world().rotation.matrix() for image in images]),
        np.array([image.projection_center() for image in images]),
    )
    rotations, centres = given.cam_from_world()
    return align(own, (rotations[rows], centres[rows]))


def _adjust_with_priors(
    model: pycolmap.Reconstruction,
    given: KnownPoses,
    trusted: Sequence[tuple[int, int]],
    stddev: float,
    refine: Refine,
) -> None:
    """Adjusts in place, with given centres whose standard deviation is known."""
    centres: Float64 = given.cam_from_world()[1]
    errors = [point.error for point in model.points3D.values() if point.error > 0]
    noise_px = max(float(np.median(errors)), 1e-3) if errors else 1.0
    # residuals in pixels count as they are, so what they are to be weighed against
    # is in units of their noise
    covariance = (stddev / noise_px) ** 2 * np.eye(3)
    priors = [
        pycolmap.PosePrior(
            corr_data_id=model.images[key].data_id,
            position=centres[row],
            position_covariance=covariance,
            coordinate_system=pycolmap.PosePriorCoordinateSystem.CARTESIAN,
        )
        for key, row in trusted
    ]
    options = pycolmap.BundleAdjustmentOptions()
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = LOSS_SCALE * noise_px / MEAN_LENGTH
    options.print_summary = False
    options.refine_focal_length = refine != "none"
    options.refine_extra_params = refine == "all"
    choose_solver(options, model)
    with_priors = pycolmap.PosePriorBundleAdjustmentOptions()
    with_priors.alignment_ransac.random_seed = 0
    robust = pycolmap.LossFunctionType.CAUCHY
    with_priors.ceres.prior_position_loss_function_type = robust
    adjuster = pycolmap.create_pose_prior_ceres_bundle_adjuster(
        options, with_priors, config_of(model), priors, model
    )
    summary = cast(pycolmap.CeresBundleAdjustmentSummary, adjuster.solve())
    if not summary.is_solution_usable():
        raise ReconstructionError(
            f"the adjustment of {model.num_reg_images()} images to given poses failed"
            f" ({summary.termination_type.name}); please report it with the database."
        )
    model.update_point_3d_errors()


def _changes(
    given: KnownPoses,
    offset: float | None,
    model: pycolmap.Reconstruction | None,
    alignment: Alignment | None,
) -> PoseChanges:
    names = set()
    if model is not None:
        names = {model.images[key].name for key in model.reg_image_ids()}
    changes: tuple[PoseChange, ...] = ()
    if model is not None and alignment is not None:
        rows = [row for _, row in _posed(model, given)]
        columns = (
            rows,
            alignment.rotation_off_deg.tolist(),
            alignment.position_off.tolist(),
            alignment.contradicted().tolist(),
        )
        changes = tuple(
            PoseChange(
                name=given.names[row],
                rotation_deg=turned,
                distance=moved,
                is_contradicted=wrong,
            )
            for row, turned, moved, wrong in zip(*columns, strict=True)
        )
    return PoseChanges(
        source=given.source,
        convention=str(given.convention),
        time_offset_s=offset,
        num_given=len(given),
        rotation_stddev_deg=alignment.rotation_stddev_deg if alignment else 0.0,
        position_stddev=alignment.position_stddev if alignment else 0.0,
        changes=changes,
        added=tuple(sorted(names - set(given.names))),
        lost=tuple(sorted(set(given.names) - names)) if model is not None else (),
    )


def _log(changes: PoseChanges, where: str) -> None:
    wrong = [change.name for change in changes.changes if change.is_contradicted]
    if wrong:
        logger.warning(
            "%d of %d given poses in %s contradict the photographs and were replaced:"
            " %s",
            *(len(wrong), len(changes.changes), where, ", ".join(wrong[:_MAX_LISTED])),
        )
