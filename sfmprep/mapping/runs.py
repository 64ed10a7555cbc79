"""Runs of COLMAP's mappers: watched, stopped, and with thresholds of the features."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from statistics import median

import pycolmap

from sfmprep.budget import Budget
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.devices import num_cores
from sfmprep.mapping.adjust import TOLERANCE
from sfmprep.mapping.solver import choose_solver, least_residuals
from sfmprep.mapping.view_reader import Scales
from sfmprep.progress import Progress

# A point at two degrees is told to a hundredth of its depth where keypoints are to a
# third of a pixel and the focal length is 1000: enough for a first pair.
_MIN_ANGLE_DEG = 2.0
# All is adjusted when there are so many times as many images, or points, as the last
# time; COLMAP's is 1.1. Two captures (`fox`, `tum-fr2-desk20`) map in 0.80 and 0.86 of
# the CPU time, as exactly but for what runs differ by.
_GROWTH = 1.25
# Shares of the loss that a step of an adjustment must gain: of the few images around a
# new one, which the next moves again; and of all. COLMAP goes on whatever they gain.
# With the first for all of `fox` as well, 14 of 64,800 keypoints stayed that fit badly.
_LOCAL_TOLERANCE, _GLOBAL_TOLERANCE = 1e-4, 1e-6
_FEW_IMAGES = 4  # up to which points that two of them see are used


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every start of a mapper needs."""

    database: Path  # whose cameras are calibrated
    images: ImageSet
    folder: Path  # for files that nobody needs afterwards
    config: MappingConfig
    cameras: DatabaseConfig
    scales: Scales | None
    seed: int
    progress: Progress
    # for starts beside the first
    budget: Budget = field(default_factory=Budget)

    @property
    def scale(self) -> float:
        """By how much COLMAP's thresholds, one for all images, are multiplied."""
        return median(self.scales.values()) if self.scales else 1.0


def sorted_models(
    models: Iterable[pycolmap.Reconstruction],
) -> list[pycolmap.Reconstruction]:
    """Largest first, without those whose images are all in a larger one."""
    kept: list[pycolmap.Reconstruction] = []
    covered: list[set[int]] = []
    for model in sorted(
        (model for model in models if model.num_points3D()),
        key=lambda model: (model.num_reg_images(), model.num_points3D()),
        reverse=True,
    ):
        ids = set(model.reg_image_ids())
        if not any(ids <= larger for larger in covered):
            kept.append(model)
            covered.append(ids)
    return kept


def _set_options(
    options: pycolmap.IncrementalPipelineOptions | pycolmap.GlobalPipelineOptions,
    run: Run,
) -> None:
    """Sets what both mappers have in common."""
    options.min_num_matches = run.config.min_num_matches
    options.min_model_size = min(run.config.min_model_size, len(run.images))
    options.random_seed = run.seed


def map_incrementally(
    run: Run,
    *,
    start: tuple[int, int] | None = None,
    onwards: pycolmap.Reconstruction | None = None,
    names: Sequence[str] = (),
    weakest: bool = False,
    fixed: Collection[int] | None = None,
    num_threads: int | None = None,
) -> list[pycolmap.Reconstruction]:
    """Runs the mapper in a thread, so that it can be watched and stopped.

    Args:
        run: The database, thresholds, and where files may go.
        start: Ids of two images, from which one model is made.
        onwards: A model of these images, cameras and keypoints (see `carry_over`), to
            which the mapper adds; it stays as it is. One model comes back.
        names: The images to map; none for all.
        weakest: Whether a first pair may have as few inliers as any pair, at 2 degrees;
            COLMAP asks 25 and 4 degrees at least.
        fixed: Ids of cameras that stay as they are, and with them the poses of
            `onwards`; None for nothing that is fixed.
        num_threads: None for all cores.
    """
    options = incremental_options(run)
    options.image_names = list(names)
    options.num_threads = num_threads or num_cores()
    if fixed is not None:
        options.fix_existing_frames = True
        options.ba_local_function_tolerance = TOLERANCE  # no finer one follows
        options.constant_cameras = set(fixed)
    if weakest:
        options.mapper.init_min_num_inliers = run.config.min_num_matches
        options.mapper.init_min_tri_angle = _MIN_ANGLE_DEG
    if start is not None:
        options.init_image_id1, options.init_image_id2 = start
        options.init_num_trials, options.multiple_models = 1, False
    given = run.folder / "given"
    if onwards is not None:
        given.mkdir(exist_ok=True)
        onwards.write(given)
    registered: SimpleQueue[int] = SimpleQueue()
    token = pycolmap.CancellationToken()

    def map_in_thread() -> list[pycolmap.Reconstruction]:
        try:
            models = pycolmap.incremental_mapping(
                run.database,
                run.images.root,
                run.folder,
                options,
                input_path=given if onwards is not None else "",
                initial_image_pair_callback=lambda: registered.put(2),
                next_image_callback=lambda: registered.put(1),
                cancellation_token=token,
            )
        finally:
            registered.put(0)
        return list(models.values())

    def steps() -> Iterator[None]:
        while count := registered.get():
            yield from itertools.repeat(None, count)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(map_in_thread)
        try:
            for _ in run.progress(steps(), desc="map", total=len(run.images)):
                pass
        except BaseException:
            token.cancel()
            raise
        return job.result()


def incremental_options(run: Run) -> pycolmap.IncrementalPipelineOptions:
    """The thresholds of the incremental mapper, and what it may refine."""
    options = pycolmap.IncrementalPipelineOptions()
    _set_options(options, run)
    mapper, triangulation = options.mapper, options.triangulation
    for part, names in (
        (mapper, ("init_max_error", "abs_pose_max_error", "filter_max_reproj_error")),
        (triangulation, ("merge_max_reproj_error", "complete_max_reproj_error")),
    ):
        for name in names:
            setattr(part, name, getattr(part, name) * run.scale)
    triangulation.ignore_two_view_tracks = len(run.images) > _FEW_IMAGES
    options.ba_global_frames_ratio = options.ba_global_points_ratio = _GROWTH
    options.ba_global_function_tolerance = _GLOBAL_TOLERANCE
    options.ba_local_function_tolerance = _LOCAL_TOLERANCE
    options.ba_min_num_residuals_for_cpu_multi_threading = least_residuals()
    refine = run.cameras.refine
    options.ba_refine_focal_length = refine != "none"
    options.ba_refine_extra_params = refine == "all"
    mapper.abs_pose_refine_focal_length = refine != "none"
    mapper.abs_pose_refine_extra_params = refine == "all"
    return options


def refine_globally(
    mapper: pycolmap.IncrementalMapper,
    pipeline: pycolmap.IncrementalPipelineOptions,
    options: pycolmap.IncrementalMapperOptions,
    triangulation: pycolmap.IncrementalTriangulatorOptions,
) -> None:
    """Adjusts all that a mapper holds, as often as its pipeline would."""
    adjustment = pipeline.get_global_bundle_adjustment()
    choose_solver(adjustment, mapper.reconstruction)
    mapper.iterative_global_refinement(
        pipeline.ba_global_max_refinements,
        pipeline.ba_global_max_refinement_change,
        options,
        adjustment,
        triangulation,
    )


def map_globally(run: Run) -> list[pycolmap.Reconstruction]:
    """Runs the global mapper; of pairs it takes those that have a relative pose."""
    options = pycolmap.GlobalPipelineOptions()
    _set_options(options, run)
    mapper, triangulation = options.mapper, options.mapper.retriangulation
    triangulation.merge_max_reproj_error *= run.scale
    triangulation.complete_max_reproj_error *= run.scale
    ceres = mapper.bundle_adjustment.ceres
    ceres.loss_function_scale *= run.scale
    ceres.min_num_residuals_for_cpu_multi_threading = least_residuals()
    mapper.bundle_adjustment.refine_focal_length = run.cameras.refine != "none"
    mapper.bundle_adjustment.refine_extra_params = run.cameras.refine == "all"
    if len(run.images) <= _FEW_IMAGES:
        triangulation.ignore_two_view_tracks = False
        mapper.track_min_num_views_per_track = 2
        mapper.global_positioning.min_num_view_per_track = 2
        mapper.bundle_adjustment.min_track_length = 2
    found = pycolmap.global_mapping(run.database, run.images.root, run.folder, options)
    return sorted_models(found.values())
