"""Captures whose geometry is degenerate: cameras or points on one line or one spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet

Float64 = NDArray[np.float64]

SIZE = (320, 240)
FOCAL = 250.0
LAYOUTS = ("one_spot", "turning", "slider", "drone", "along_the_axis", "opposite")
CLOUDS = ("none", "one", "one_spot", "line", "plane", "volume")


def facing(eye: Sequence[float], ahead: Sequence[float]) -> Float64:
    """The [3, 4] pose of a camera that looks along `ahead`; z is up."""
    forward = np.array(ahead, np.float64) / np.linalg.norm(ahead)
    beside = (0, 0, 1) if abs(forward[2]) < 0.9 else (0, 1, 0)
    right = np.cross(forward, beside)
    right /= np.linalg.norm(right)
    rotation = np.stack((right, np.cross(forward, right), forward))
    return np.column_stack((rotation, -rotation @ eye))


def poses_of(layout: str, number: int) -> list[Float64]:
    """So many cameras, at distances of some 5 from the origin unless they turn."""
    steps = np.linspace(-1, 1, number) if number > 1 else np.zeros(1)
    match layout:
        case "one_spot":
            return [facing((0, -5, 0), (0, 1, 0)) for _ in steps]
        case "turning":
            return [facing((0, -5, 0), (np.sin(s), np.cos(s), 0)) for s in steps]
        case "slider":
            return [facing((s, -5, 0), (0, 1, 0)) for s in steps]
        case "drone":
            return [facing((s, s * s, 5), (0, 0, -1)) for s in steps]
        case "along_the_axis":
            return [facing((0, s - 5, 0), (0, 1, 0)) for s in steps]
        case "opposite":
            sides = [1 if k % 2 else -1 for k in range(number)]
            return [facing((0, 5 * s, 0), (0, -s, 0)) for s in sides]
        case _:
            raise ValueError(layout)


def cloud_of(cloud: str) -> Float64:
    """Points [N, 3] around the origin."""
    rng = np.random.default_rng(5)
    volume = rng.uniform(-1, 1, (240, 3))
    match cloud:
        case "none":
            return np.empty((0, 3))
        case "one":
            return np.array([[0.1, 0.2, 0.3]])
        case "one_spot":
            return np.full((240, 3), 0.25)
        case "line":
            return volume * (1, 0, 0)
        case "plane":
            return volume * (1, 1, 0)
        case "volume":
            return volume
        case _:
            raise ValueError(cloud)


def capture(
    poses: Sequence[Float64], points: Float64, *, noise_px: float = 0.0
) -> tuple[pycolmap.Reconstruction, ImageSet]:
    """A model in which all cameras see the points in front of them."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_id(
        1, pycolmap.CameraModelId.SIMPLE_PINHOLE, FOCAL, *SIZE
    )
    model.add_camera_with_trivial_rig(camera)
    rng = np.random.default_rng(1)
    names = tuple(f"{k:03}.png" for k in range(len(poses)))
    seen = np.zeros((len(poses), len(points)), bool)
    for k, (name, pose) in enumerate(zip(names, poses, strict=True)):
        places = points @ pose[:, :3].T + pose[:, 3]
        seen[k] = places[:, 2] > 0.1
        depths = np.where(seen[k], places[:, 2], 1)
        xy = FOCAL * places[:, :2] / depths[:, None] + np.array(SIZE) / 2
        xy += rng.normal(scale=noise_px, size=xy.shape) if noise_px else 0
        image = pycolmap.Image(name=name, image_id=k + 1, camera_id=1, keypoints=xy)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    for row in np.flatnonzero(seen.any(axis=0)).tolist():
        track = pycolmap.Track()
        for k in np.flatnonzero(seen[:, row]).tolist():
            track.add_element(k + 1, row)
        model.add_point3D(points[row], track)
    model.update_point_3d_errors()
    infos = {name: ImageInfo(size=SIZE, orientation=1, num_bytes=1) for name in names}
    return model, ImageSet(Path("photographs"), names, infos, {})


@st.composite
def captures(
    draw: st.DrawFn, min_cameras: int = 1
) -> tuple[pycolmap.Reconstruction, ImageSet]:
    """A degenerate capture in any frame, with or without noise."""
    model, images = capture(
        poses_of(draw(st.sampled_from(LAYOUTS)), draw(st.integers(min_cameras, 9))),
        cloud_of(draw(st.sampled_from(CLOUDS))),
        noise_px=draw(st.sampled_from((0.0, 0.3))),
    )
    turn = np.array([draw(st.floats(-3, 3)) for _ in range(3)])
    shift = np.array([draw(st.floats(-1000, 1000)) for _ in range(3)])
    scale = draw(st.sampled_from((0.001, 0.37, 1.0, 1000.0)))
    model.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(turn), shift))
    return model, images


def with_gps(images: ImageSet, places: Float64) -> ImageSet:
    """The images with these positions [N, 3] east, north, up of a place on earth."""
    earth = pycolmap.GPSTransform().enu_to_ellipsoid(places, 52.52, 13.405, 34.0)
    infos = {
        name: replace(images.infos[name], gps=tuple(map(float, place)))
        for name, place in zip(images.names, np.asarray(earth), strict=True)
    }
    return replace(images, infos=infos)
