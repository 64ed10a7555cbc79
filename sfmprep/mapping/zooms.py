"""Photographs of one camera that were taken with two zooms, as tracks tell.

A camera that many photographs share has one focal length; where some were zoomed, poses
take the zoom for a step forwards, and nothing that was adjusted shows it well. Tracks
left out of an adjustment do: with a camera for each of two groups of photographs they
fit clearly better than with one. Groups are told by the focal length that each
photograph would have by itself, its pose free and the points of the model held.
Zooms of a few per cent are found so; larger ones only where cameras did not take all of
it for distance.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from sfmprep.errors import ReconstructionError
from sfmprep.geometry.adjustment import cameras_in
from sfmprep.mapping.adjust import adjust
from sfmprep.mapping.focal_length import with_focal_length
from sfmprep.mapping.lens_choice import CHOICE_TOLERANCE, Halves
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_MIN_IMAGES = 8  # of a camera
_MAX_IMAGES = 300  # of a model
_MIN_GROUP = 3
_MIN_TRACKS = 50  # that a camera sees
_MAX_POINTS = 300  # of a photograph
# What left-out tracks must gain, in standard errors and as a share of the loss. Real
# scenes of one zoom gave up to 0.3 %, made ones with zooms of 8 to 30 % from 7 to 80 %.
_MIN_DEVIATIONS = 5.0
_MIN_GAIN = 0.02
_MIN_RATIO = 1.01  # less is focus, or what the other numbers of two lenses take
_BEHIND_PX = 50.0  # that a point counts as off which the camera does not see


@dataclass(frozen=True, kw_only=True)
class TwoZooms:
    """A camera whose photographs two focal lengths explain better than one."""

    camera_id: int
    shorter: tuple[str, ...]  # photographs with the shorter focal length
    longer: tuple[str, ...]
    ratio: float  # of the focal lengths, above 1


def find_two_zooms(
    model: pycolmap.Reconstruction, known: Collection[int] = (), *, seed: int = 0
) -> list[TwoZooms]:
    """Finds cameras that should be two, by tracks left out of an adjustment.

    Cameras of fewer than eight photographs are not asked; none are asked in models with
    rigs of several cameras, or of more than 300 photographs.

    Args:
        model: It stays as it is.
        known: Ids of cameras that are not asked.
        seed: Of which tracks are left out.
    """
    has_rigs = any(rig.num_sensors() > 1 for rig in model.rigs.values())
    if has_rigs or model.num_reg_images() > _MAX_IMAGES:
        return []
    asked = [
        key
        for key, count in sorted(cameras_in(model).items())
        if key not in known and count >= _MIN_IMAGES
    ]
    if not asked:
        return []
    halves = Halves.of(model, seed)
    one = halves.adjusted([{}, {}], ())
    if one is None:
        return []
    found = []
    for key in asked:
        groups = _groups(model, key)
        if groups is None or halves.num_tracks(key) < _MIN_TRACKS:
            continue
        two = [with_two_cameras(half, key, groups[1]) for half in halves.models]
        try:
            for half in two:
                adjust(half, centres=True, tolerance=CHOICE_TOLERANCE)
        except ReconstructionError as error:
            logger.debug("no second zoom: %s", error)
            continue
        new = max(two[0].cameras)
        ratio = two[0].cameras[new].mean_focal_length()
        ratio /= two[0].cameras[key].mean_focal_length()
        gain, errors = halves.gain(
            halves.errors(one), halves.errors(two), key, by_image=False
        )
        logger.debug("camera %d: two zooms gain %.4f, %.1f errors", key, gain, errors)
        if gain > _MIN_GAIN and errors > _MIN_DEVIATIONS and ratio > _MIN_RATIO:
            names = [
                tuple(sorted(model.images[k].name for k in group)) for group in groups
            ]
            found.append(
                TwoZooms(camera_id=key, shorter=names[0], longer=names[1], ratio=ratio)
            )
    return found


def _groups(
    model: pycolmap.Reconstruction, camera_id: int
) -> tuple[list[int], list[int]] | None:
    """Ids of a camera's images in two groups by focal length; None for too few."""
    ids = [k for k in model.reg_image_ids() if model.images[k].camera_id == camera_id]
    logs = np.log([_own_focal_length(model, k) for k in ids])
    order = np.argsort(logs, kind="stable")
    ids, logs = [ids[row] for row in order], logs[order]
    ends = range(_MIN_GROUP, len(ids) - _MIN_GROUP + 1)
    if not ends:
        return None
    cut = min(ends, key=lambda k: logs[:k].var() * k + logs[k:].var() * (len(ids) - k))
    return ids[:cut], ids[cut:]


def _own_focal_length(model: pycolmap.Reconstruction, image_id: int) -> float:
    """Of one image, with its pose free and the points it sees held; pixels."""
    image = model.images[image_id]
    camera = pycolmap.Camera(model.cameras[image.camera_id].todict())
    focal = camera.mean_focal_length()
    seen = image.get_observation_points2D()
    rows = np.random.default_rng(image_id).permutation(len(seen))[:_MAX_POINTS]
    if len(rows) < _MIN_IMAGES:
        return focal
    xy = np.array([seen[row].xy for row in rows])
    points = np.array([model.points3D[seen[row].point3D_id].xyz for row in rows])
    pose = image.cam_from_world()
    local = points @ pose.rotation.matrix().T + np.asarray(pose.translation)
    depth = float(np.median(local[:, 2]))

    def errors(change: Float64) -> Float64:
        """Of a rotation, a step in units of the depth, and a factor's logarithm."""
        turned = Rotation.from_rotvec(change[:3]).apply(local) + depth * change[3:6]
        changed = with_focal_length(camera, focal * float(np.exp(change[6])))
        off = np.asarray(changed.img_from_cam(turned)) - xy
        return np.asarray(np.nan_to_num(off, nan=_BEHIND_PX), np.float64).ravel()

    fitted = least_squares(errors, np.zeros(7), loss="soft_l1", max_nfev=30)
    return focal * float(np.exp(fitted.x[6]))


def with_two_cameras(
    model: pycolmap.Reconstruction, camera_id: int, others: Collection[int]
) -> pycolmap.Reconstruction:
    """A copy in which these images have a camera of their own, of the highest id."""
    own = max(model.cameras) + 1
    copy = pycolmap.Reconstruction()
    for key in sorted(model.cameras):
        copy.add_camera_with_trivial_rig(model.cameras[key])
    camera = pycolmap.Camera(model.cameras[camera_id].todict())
    camera.camera_id = own
    copy.add_camera_with_trivial_rig(camera)
    for key in sorted(model.reg_image_ids()):
        image = model.images[key]
        xy = [pycolmap.Point2D(point.xy) for point in image.points2D]
        copy.add_image_with_trivial_frame(
            pycolmap.Image(
                name=image.name,
                points2D=pycolmap.Point2DList(xy),
                camera_id=own if key in others else image.camera_id,
                image_id=key,
            ),
            image.cam_from_world(),
        )
    for point in model.points3D.values():
        copy.add_point3D(point.xyz, point.track, point.color)
    return copy
