"""Images that COLMAP's constants keep out, registered by thresholds of the capture.

COLMAP asks 30 inliers, and a quarter of the matches, of every pose. A pose that rests
on 12 of 15 exact matches is no accident, one that rests on 40 of 200 inexact ones may
be. Here as many are needed as chance would not give, with an error that follows the
noise of the keypoints; and the pose stays only if the pairs of the image, also those
matches that became no points, agree with it: two pairs or more, or one that is strong,
and no others that contradict them. Where things look alike from two sides, a single
weak pair is what puts a view on the wrong one.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import pycolmap

from sfmprep.mapping.agreement import VerifiedMatches, count_fitting, hold_together
from sfmprep.mapping.carry_over import carry_over
from sfmprep.mapping.chance import needed_inliers
from sfmprep.mapping.runs import Run, incremental_options, refine_globally

logger = logging.getLogger(__name__)

_MIN_INLIERS = 8
_NOISES = 6.0  # standard deviations; a point of few views is less exact than a keypoint
_MIN_ERROR_PX = 4.0
_MIN_SHARE_AGREEING = 0.75  # of the inliers of an image's verified pairs


def register_more(
    run: Run, model: pycolmap.Reconstruction, cache: pycolmap.DatabaseCache
) -> tuple[pycolmap.Reconstruction, list[str]]:
    """Adds images to a model that the mapper could not add.

    Args:
        run: Thresholds of the mapper.
        model: It stays as it is.
        cache: Of the same database; see `open_cache`.

    Returns:
        A model, adjusted where something was added, and the names of new images.
    """
    grown = carry_over(model, cache)
    matches = VerifiedMatches(cache)
    pipeline = incremental_options(run)
    options, triangulation = pipeline.get_mapper(), pipeline.get_triangulation()
    limit_px = options.abs_pose_max_error
    options.abs_pose_max_error = _error_px(model, run, limit_px)
    options.abs_pose_min_inlier_ratio = 0.0  # asked by number below
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(grown)
    added: dict[int, None] = {}
    tried: dict[int, int] = {}  # points of the model that an image saw in vain
    while (image_id := _next_image(mapper, options, tried)) is not None:
        visible = mapper.observation_manager.num_visible_points3D(image_id)
        tried[image_id] = visible
        camera = cache.camera(cache.image(image_id).camera_id)
        diagonal_px = math.hypot(camera.width, camera.height)
        # along an epipolar line, on which verified matches are
        chance = 2 * options.abs_pose_max_error / diagonal_px
        needed = needed_inliers(visible, chance)
        if needed is None:
            continue
        options.abs_pose_min_num_inliers = max(needed, _MIN_INLIERS)
        if not mapper.register_next_image(options, image_id):
            continue
        mapper.triangulate_image(triangulation, image_id)
        mapper.iterative_local_refinement(
            pipeline.ba_local_max_refinements,
            pipeline.ba_local_max_refinement_change,
            options,
            pipeline.get_local_bundle_adjustment(),
            triangulation,
            image_id,
        )
        if _is_confirmed(run, grown, matches, image_id):
            added[image_id] = None
        elif grown.images[image_id].has_pose:
            frame_id = grown.images[image_id].frame_id
            mapper.observation_manager.deregister_frame(frame_id)
    if added:
        refine_globally(mapper, pipeline, options, triangulation)
    mapper.end_reconstruction(False)
    if not added:
        return model, []
    kept = [
        grown.images[key].name
        for key in added
        if _is_confirmed(run, grown, matches, key)
    ]
    for key in added:
        image = grown.images[key]
        if image.has_pose and image.name not in kept:
            grown.deregister_frame(image.frame_id)
    lost = model.num_reg_images() + len(kept) - grown.num_reg_images()
    if not kept or lost > 0:
        return model, []
    logger.info("%d images more by thresholds of the capture: %s", len(kept), kept)
    return grown, kept


def _next_image(
    mapper: pycolmap.IncrementalMapper,
    options: pycolmap.IncrementalMapperOptions,
    tried: dict[int, int],
) -> int | None:
    """The most promising image that was not tried, or sees half as much again."""
    options.abs_pose_min_num_inliers = _MIN_INLIERS
    for image_id in mapper.find_next_images(options, False):
        visible = mapper.observation_manager.num_visible_points3D(image_id)
        if image_id not in tried or visible > 1.5 * tried[image_id]:
            return int(image_id)
    return None


def _error_px(model: pycolmap.Reconstruction, run: Run, limit_px: float) -> float:
    """How far from its keypoint a point may be, by the noise of the model."""
    errors = [point.error for point in model.points3D.values() if point.error > 0]
    noise = float(np.median(errors)) if errors else limit_px
    return min(max(_NOISES * noise, _MIN_ERROR_PX * run.scale), limit_px)


def _is_confirmed(
    run: Run,
    model: pycolmap.Reconstruction,
    matches: VerifiedMatches,
    image_id: int,
) -> bool:
    """Whether an image kept its points and its verified pairs agree with its pose."""
    image = model.images[image_id]
    if not image.has_pose or image.num_points3D < _MIN_INLIERS:
        return False
    pairs = [(image_id, other) for other, _ in matches.partners.get(image_id, ())]
    counts = count_fitting(
        *(model, matches, pairs), max_error_px=run.cameras.max_error_px * run.scale
    )
    fitting, total = counts.sum(axis=0)
    links = [
        (*pair, int(count[0]))
        for pair, count in zip(pairs, counts, strict=True)
        if 2 * count[0] > count[1]
    ]
    return bool(
        fitting >= _MIN_SHARE_AGREEING * total and hold_together(links, single=True)
    )
