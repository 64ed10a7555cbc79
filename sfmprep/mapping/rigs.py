"""Cameras that were fixed to each other: poses that keep to it.

Photographs are mapped one by one, as if nothing held them together. Then their poses
are brought into rigs and adjusted as such. So a view that shows too little to be mapped
gets its pose from the others of its frame, and no pose can go astray.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pycolmap

from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.geometry.adjustment import config_of
from sfmprep.geometry.robust import LOSS_SCALE, MEAN_LENGTH
from sfmprep.geometry.views import keypoints_xy
from sfmprep.mapping.adjust import noise_px
from sfmprep.mapping.carry_over import carry_over
from sfmprep.mapping.database import copy_database
from sfmprep.mapping.solver import choose_solver
from sfmprep.mapping.split_cameras import cameras_apart, split_cameras
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_MAX_APART_DEG = 3.0  # between what two images of a frame say of its rotation
_NOISES = 6.0  # standard deviations; observations further off go
_LEAST_NOISE_PX = 0.1


def frames_of_rigs(
    names: Iterable[str], rigs: Sequence[pycolmap.RigConfig]
) -> dict[str, tuple[int, str]]:
    """The rig, and the frame in it, of each image that a camera of a rig took."""
    return {name: frame for name, frame, _ in _shots(names, rigs)}


def _shots(
    names: Iterable[str], rigs: Sequence[pycolmap.RigConfig]
) -> Iterator[tuple[str, tuple[int, str], pycolmap.RigConfigCamera]]:
    """Images in their order, the frames that they are of, and the cameras."""
    for name in names:
        for number, rig in enumerate(rigs):
            for camera in rig.cameras:
                if name.startswith(camera.image_prefix):
                    yield name, (number, name.removeprefix(camera.image_prefix)), camera


def hold_rigs(
    model: pycolmap.Reconstruction,
    rigs: Sequence[pycolmap.RigConfig],
    database: Path,
    folder: Path,
    *,
    settled: Collection[str] = (),
) -> pycolmap.Reconstruction:
    """Returns a model whose poses keep to the rigs.

    Images of a frame that contradict most of the others in it lose their pose before,
    and get that of the rig; so do those that are not settled in a frame of settled
    ones. Cameras that a rig gives, and places of cameras in it, stay
    as they are given; what it leaves open is taken from the model and adjusted. A
    camera of a rig is one, also where its images were mapped as of several zooms.

    Args:
        model: Of this database; it stays as it is.
        rigs: Cameras by the folders of their images, as in COLMAP's `rig_config.json`.
        database: Not changed.
        folder: An empty one, to work in.
        settled: Images whose poses keep to the rigs already and stay as they are, and
            so do their cameras: these tell what the rigs leave open.

    Returns:
        A model in which every image is on its own again, and has the pose of its rig;
        a copy of `model` where no rig has an image in it.

    Raises:
        ConfigError: a rig does not fit the images.
        ReconstructionError: COLMAP found no solution.
    """
    prefixes = [camera.image_prefix for rig in rigs for camera in rig.cameras]
    registered = [model.images[key] for key in sorted(model.reg_image_ids())]
    if not any(image.name.startswith(tuple(prefixes)) for image in registered):
        return pycolmap.Reconstruction(model)
    rigs = _told_by(model, rigs, settled)
    held = pycolmap.Reconstruction(model)
    lost = _contradicting(held, rigs, settled)
    for image_id in lost:
        held.deregister_frame(held.images[image_id].frame_id)
    if lost:
        logger.info("%d images get the pose of their rigs", len(lost))
    own = folder / "rigs.db"
    copy_database(database, own)
    held = _with_all_images(held, own, tuple(prefixes))
    with pycolmap.Database.open(own) as opened:
        try:
            pycolmap.apply_rig_config(list(rigs), opened, held)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"the rigs do not fit the {len(registered)} images with a pose: {error}"
            ) from error
    told = tuple(
        camera.image_prefix
        for rig in rigs
        for camera in rig.cameras
        if camera.cam_from_rig is not None
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.ba_refine_sensor_from_rig = not told  # it is of all or none
    held = pycolmap.triangulate_points(
        *(held, own, folder, folder),  # no photographs: colours come with the dataset
        clear_points=False,
        options=options,
        refine_intrinsics=False,
    )
    given = {
        camera.image_prefix
        for rig in rigs
        for camera in rig.cameras
        if camera.camera is not None
    }
    fixed = {
        image.camera_id
        for image in held.images.values()
        if image.name.startswith(tuple(given)) or image.name in settled
    }
    for _ in range(2):
        _adjust(held, fixed, settled, told)
        _drop_far_observations(held)
    _adjust(held, fixed, settled, told)
    return _alone(held)


def _told_by(
    model: pycolmap.Reconstruction,
    rigs: Sequence[pycolmap.RigConfig],
    settled: Collection[str],
) -> list[pycolmap.RigConfig]:
    """The rigs with the places of cameras that frames of settled images tell."""
    pose_of = {
        model.images[key].name: model.images[key].cam_from_world()
        for key in model.reg_image_ids()
        if model.images[key].name in settled
    }
    told = []
    for rig in rigs:
        cameras = [copy.copy(camera) for camera in rig.cameras]
        reference = next(c.image_prefix for c in cameras if c.ref_sensor)
        for camera in cameras:
            if camera.ref_sensor or camera.cam_from_rig is not None:
                continue
            for name in sorted(pose_of):
                first = reference + name.removeprefix(camera.image_prefix)
                if name.startswith(camera.image_prefix) and first in pose_of:
                    camera.cam_from_rig = pose_of[name] * pose_of[first].inverse()
                    break
        told.append(pycolmap.RigConfig(cameras=cameras))
    return told


def _with_all_images(
    model: pycolmap.Reconstruction, database: Path, prefixes: tuple[str, ...]
) -> pycolmap.Reconstruction:
    """The model with all images of a database, and its cameras.

    Images that were mapped with a zoom of their own get a camera of their own in the
    database, unless they are of a rig: there all images of a camera get the one that
    most of them have.
    """
    apart = cameras_apart(database, model)
    if zoomed := {name for name in apart if name.startswith(prefixes)}:
        logger.warning(
            "%d images of rigs, such as %s, look as if taken with another zoom than"
            " others of their camera. A camera of a rig has one: put them into a folder"
            " of their own, and into a rig of their own, if they are right",
            *(len(zoomed), min(zoomed)),
        )
    split_cameras(database, {n: c for n, c in apart.items() if n not in zoomed})
    everything = pycolmap.DatabaseCacheOptions()
    everything.load_all_images = True  # also of frames that nothing else is known of
    with pycolmap.Database.open(database) as opened:
        cache = pycolmap.DatabaseCache.create(opened, everything)
    if not apart:
        model.load(cache)
        return model
    carried = carry_over(model, cache, same_rows=True)
    registered = [model.images[key] for key in model.reg_image_ids()]
    own = {image.name: model.cameras[image.camera_id] for image in registered}
    for image in carried.images.values():
        if image.name in own and image.name not in zoomed:
            carried.cameras[image.camera_id].model = own[image.name].model
            carried.cameras[image.camera_id].params = own[image.name].params.tolist()
    return carried


def _contradicting(
    model: pycolmap.Reconstruction,
    rigs: Sequence[pycolmap.RigConfig],
    settled: Collection[str],
) -> list[int]:
    """Registered images whose rotation is not what most of their frame tell.

    Of a frame with settled images all others: the reference camera alone would give
    the frame its pose.
    """
    frames: dict[tuple[int, str], list[tuple[int, Float64]]] = defaultdict(list)
    id_of = {model.images[key].name: key for key in sorted(model.reg_image_ids())}
    for name, frame, camera in _shots(id_of, rigs):
        image_id = id_of[name]
        rotation = model.images[image_id].cam_from_world().rotation.matrix()
        if camera.cam_from_rig is not None:
            rotation = camera.cam_from_rig.rotation.matrix().T @ rotation
        elif not camera.ref_sensor:
            continue  # nothing is known of how it is turned
        frames[frame].append((image_id, rotation))
    lost = []
    for views in frames.values():
        is_settled = [model.images[key].name in settled for key, _ in views]
        if any(is_settled):
            lost += [
                key
                for (key, _), stays in zip(views, is_settled, strict=True)
                if not stays
            ]
            continue
        rotations = np.array([rotation for _, rotation in views])
        traces = np.einsum("aij,bij->ab", rotations, rotations)
        cosines = np.clip((traces - 1) / 2, -1, 1)
        agree = np.degrees(np.arccos(cosines)) <= _MAX_APART_DEG
        # the earlier of two equal sets of images counts
        best = agree[int(agree.sum(axis=1).argmax())]
        lost += [
            image_id for (image_id, _), ok in zip(views, best, strict=True) if not ok
        ]
    return lost


def _adjust(
    model: pycolmap.Reconstruction,
    fixed: set[int],
    settled: Collection[str],
    told: tuple[str, ...],
) -> None:
    """Adjusts in place, but for what is known.

    Args:
        model: Of rigs.
        fixed: Ids of cameras.
        settled: Images of frames that stay.
        told: Prefixes of the cameras whose places in their rigs stay.
    """
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_sensor_from_rig = True
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = LOSS_SCALE * _noise_px(model)
    choose_solver(options, model)
    config = config_of(model, fixed)
    for image in model.images.values():
        if image.name.startswith(told):
            sensor = model.cameras[image.camera_id].sensor_id
            config.set_constant_sensor_from_rig_pose(sensor)
    held = {i.frame_id for i in model.images.values() if i.name in settled}
    for frame_id in held or {min(model.reg_frame_ids())}:
        config.set_constant_rig_from_world_pose(frame_id)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, model)
    # The stubs know the base class alone.
    summary = cast(pycolmap.CeresBundleAdjustmentSummary, adjuster.solve())
    if not summary.is_solution_usable():
        raise ReconstructionError(
            f"the bundle adjustment of {model.num_reg_frames()} frames of rigs failed"
            f" ({summary.termination_type.name}); please report it with the database."
        )
    model.update_point_3d_errors()


def _noise_px(model: pycolmap.Reconstruction) -> float:
    return max(noise_px(model), _LEAST_NOISE_PX)


def _drop_far_observations(model: pycolmap.Reconstruction) -> None:
    """Takes observations out that are too far off, and points that lose all but one."""
    limit_px = _NOISES * _noise_px(model) * MEAN_LENGTH
    for point_id in sorted(model.point3D_ids()):
        point = model.points3D[point_id]
        far = []
        for element in point.track.elements:
            image = model.images[element.image_id]
            xy = image.project_point(point.xyz)
            seen = image.points2D[element.point2D_idx].xy
            off = math.inf if xy is None else float(np.linalg.norm(xy - seen))
            if off > limit_px:
                far.append((element.image_id, element.point2D_idx))
        if len(far) >= point.track.length() - 1:
            model.delete_point3D(point_id)
            continue
        for image_id, row in far:
            model.delete_observation(image_id, row)


def _alone(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The same poses and points, with a frame for each image."""
    alone = pycolmap.Reconstruction()
    for camera_id in sorted(model.cameras):
        alone.add_camera_with_trivial_rig(model.cameras[camera_id])
    for image_id in sorted(model.images):
        image = model.images[image_id]
        lone = pycolmap.Image(
            name=image.name,
            keypoints=keypoints_xy(image.points2D),
            camera_id=image.camera_id,
            image_id=image_id,
        )
        if image.has_pose:
            alone.add_image_with_trivial_frame(lone, image.cam_from_world())
        else:
            alone.add_image_with_trivial_frame(lone)
    for point_id in sorted(model.point3D_ids()):
        alone.add_point3D_with_id(point_id, model.points3D[point_id])
    alone.update_point_3d_errors()
    return alone
