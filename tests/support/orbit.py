"""Databases of synthetic captures: a camera on a circle around points.

Other than COLMAP's own, the points fill the image, so that the lens can be told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.evaluation.reference import CameraPose
from sfmprep.types import Float64

WIDTH, HEIGHT = 1024, 768


def lens(
    model: str,
    focal: float,
    *extra: float,
    centre: tuple[float, float] = (WIDTH / 2, HEIGHT / 2),
) -> pycolmap.Camera:
    """A camera of 1024 x 768 pixels with some coefficients."""
    camera = pycolmap.Camera.create_from_model_name(1, model, focal, WIDTH, HEIGHT)
    params = np.array(camera.params)
    params[list(camera.extra_params_idxs())[: len(extra)]] = extra
    params[list(camera.principal_point_idxs())] = centre
    camera.params = params.tolist()
    return camera


def orbit(
    path: Path,
    camera: pycolmap.Camera,
    *,
    guess_px: float,
    is_prior: bool = False,
    num_images: int = 14,
    num_points: int = 400,
    turn: float = np.pi,
    sway: float = 0.3,
    noise_px: float = 0.3,
    num_wrong: int = 0,
    known: bool = False,
    stored_as: str | None = None,
    zoom: float = 1.0,
) -> dict[str, CameraPose]:
    """Writes a database with the matches of all pairs, not verified.

    The camera goes around the middle of a cube of side 2 at a distance of 1.6. It and
    the point that it looks at are `sway` off, at random: without that, two views at the
    same distance from where their axes meet do not tell the focal length. In the
    database the focal length is `guess_px`, the principal point the middle, and the
    lens, of the model `stored_as` or else its own, has no distortion; unless it is
    `known`. Every third image has a focal length `zoom` times as long.

    Returns:
        The poses by name.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (num_points, 3))
    poses, inside = {}, {}
    with pycolmap.Database.open(path) as database:
        stored = pycolmap.Camera.create_from_model_name(
            0, stored_as or camera.model_name, guess_px, camera.width, camera.height
        )
        if known:
            stored.params = camera.params
        stored.has_prior_focal_length = is_prior or known
        stored.camera_id = database.write_camera(stored)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(stored.sensor_id)
        rig_id = database.write_rig(rig)
        for k, angle in enumerate(np.linspace(0, turn, num_images)):
            image = pycolmap.Image(name=f"{k:02}.jpg", camera_id=stored.camera_id)
            image.image_id = database.write_image(image)
            frame = pycolmap.Frame()
            frame.rig_id = rig_id
            frame.add_data_id(image.data_id)
            database.write_frame(frame)
            centre = 1.6 * np.array([np.cos(angle), 0, np.sin(angle)])
            centre += rng.uniform(-sway, sway, 3)
            target = rng.uniform(-sway, sway, 3)
            rotation = looking(target - centre)
            poses[image.name] = CameraPose(rotation=rotation, centre=centre)
            own = pycolmap.Camera(camera.todict())
            if k % 3 == 2:
                params = np.array(own.params)
                params[list(own.focal_length_idxs())] *= zoom
                own.params = params.tolist()
            xy = np.asarray(own.img_from_cam((points - centre) @ rotation.T))
            xy = xy + rng.normal(0, noise_px, xy.shape)
            seen = ((xy > 0) & (xy < [camera.width, camera.height])).all(axis=1)
            wrong = rng.permutation(num_points)[:num_wrong]
            xy[wrong] = rng.uniform(0, HEIGHT, (num_wrong, 2))
            seen[wrong] = True
            inside[image.image_id] = seen
            database.write_keypoints(image.image_id, xy.astype(np.float32))
        for id0, seen0 in inside.items():
            for id1, seen1 in inside.items():
                if id0 < id1:
                    both = np.flatnonzero(seen0 & seen1).astype(np.uint32)
                    database.write_matches(id0, id1, np.stack([both, both], axis=1))
    return poses


def orbit_model(
    cameras: Sequence[pycolmap.Camera],
    *,
    num_images: int = 20,
    num_points: int = 1000,
    noise_px: float = 0.5,
) -> tuple[pycolmap.Reconstruction, dict[str, CameraPose]]:
    """A model of the same capture, images by the cameras in turn, and true poses.

    Its cameras have the ids 1, 2, ..., the true focal lengths, principal points in the
    middle and no distortion; poses and points are true.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.7, 0.7, (num_points, 3))  # none near a camera
    model = pycolmap.Reconstruction()
    for k, camera in enumerate(cameras, 1):
        fisheye = "_FISHEYE" if camera.is_perspective_fisheye() else ""
        first = lens(f"SIMPLE_RADIAL{fisheye}", camera.mean_focal_length())
        first.camera_id = k
        model.add_camera_with_trivial_rig(first)
    poses, seen_by = {}, defaultdict(list)
    for k, angle in enumerate(np.linspace(0, np.pi, num_images), 1):
        centre = 1.6 * np.array([np.cos(angle), 0, np.sin(angle)])
        centre += rng.uniform(-0.3, 0.3, 3)
        rotation = looking(rng.uniform(-0.3, 0.3, 3) - centre)
        number = k % len(cameras)
        camera = cameras[number]
        xy = np.asarray(camera.img_from_cam((points - centre) @ rotation.T))
        xy = xy + rng.normal(0, noise_px, xy.shape)
        seen = ((xy > 0) & (xy < [camera.width, camera.height])).all(axis=1)
        for row, point in enumerate(np.flatnonzero(seen).tolist()):
            seen_by[point].append(pycolmap.TrackElement(k, row))
        image = pycolmap.Image(
            name=f"{k:02}.jpg",
            points2D=pycolmap.Point2DList([pycolmap.Point2D(q) for q in xy[seen]]),
            camera_id=number + 1,
            image_id=k,
        )
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
        model.add_image_with_trivial_frame(image, pose)
        poses[image.name] = CameraPose(rotation=rotation, centre=centre)
    for point, elements in seen_by.items():
        if len(elements) > 1:
            model.add_point3D(points[point], pycolmap.Track(elements), np.zeros(3))
    model.update_point_3d_errors()
    return model, poses


def looking(forward: Float64) -> Float64:
    """The rotation into a camera that looks there, x level, y down."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])
