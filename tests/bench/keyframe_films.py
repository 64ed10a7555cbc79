"""Films for the choice of frames: with exact poses and known blur, and shared ones.

The made ones walk through the courtyard at 30 frames a second. Blur is that of a line
of so many pixels, as a moving or shaking camera makes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.demo.raycast import Camera, render_image
from sfmprep.demo.textures import to_texture
from sfmprep.threads import thread_pool
from sfmprep.types import Bytes, Float32, Float64
from tests.bench.shared import scene_folder
from tests.support.films import write_film
from tests.support.moving_things import camera_entry

SIZE = (480, 360)
_NOISE = 1.5  # grey levels
_BLURRED_PX = 3.0  # a line of that length takes fine detail away
_PAN_DEG, _PAN_FRAMES = 35.0, 40
_SHUTTER = 0.25  # of the time from one frame to the next it is open


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame to be rendered."""

    camera: Camera
    blur_px: float = 0.0
    gain: float = 1.0


@dataclass(frozen=True)
class Film:
    """A film, and how it is made; a shared one lies in `../shared`."""

    name: str
    what: str
    shots: Callable[[], list[Shot]] | None = None
    quarter_turns: int = 0
    has_varying_rate: bool = False


@dataclass(frozen=True, eq=False)
class Made:
    """A film on disk, and what is known of each of its frames."""

    path: Path
    poses: list[dict[str, Any]] | None = None  # as in reference.json
    is_blurred: list[bool] | None = None


def along(ways: Sequence[float] | Float64, size: tuple[int, int]) -> list[Camera]:
    """Cameras on the walk of 110 degrees, whose ends are 0 and 1, without a jump."""
    posts = camera_walk(24, size, 0)
    places = np.linspace(0, 1, len(posts))
    turns = Slerp(places, Rotation.from_matrix([post.rotation for post in posts]))
    centres = np.array([post.centre for post in posts])
    rotations = turns(np.asarray(ways)).as_matrix()
    at = np.stack([np.interp(ways, places, column) for column in centres.T], 1)
    return [
        replace(posts[0], rotation=rotation, translation=-rotation @ centre)
        for rotation, centre in zip(rotations, at, strict=True)
    ]


def stops_and_pan() -> list[Shot]:
    """Walks, stands still, looks around fast, walks on."""
    walk = along(np.linspace(0, 0.45, 140), SIZE)
    angles = _PAN_DEG * np.sin(np.linspace(0, np.pi, _PAN_FRAMES))
    speeds = (
        np.abs(np.gradient(np.radians(angles))) * walk[0].intrinsics[0, 0] * _SHUTTER
    )
    stands = walk[70]
    pan = [
        Shot(_turned(stands, angle), speed)
        for angle, speed in zip(angles, speeds, strict=True)
    ]
    first, rest = walk[:70], walk[70:]
    return [*map(Shot, first), *[Shot(stands)] * 40, *pan, *map(Shot, rest)]


def shaking() -> list[Shot]:
    """Held by an unsteady hand: bursts of blur, of one to five frames."""
    rng = np.random.default_rng(3)
    cameras = along(np.linspace(0, 0.5, 170), SIZE)
    blur = np.zeros(len(cameras))
    place = 4
    while place < len(blur):
        length = int(rng.integers(1, 6))
        blur[place : place + length] = rng.uniform(4, 9, len(blur[place:][:length]))
        place += length + int(rng.integers(3, 9))
    return [Shot(*each) for each in zip(cameras, blur.tolist(), strict=True)]


def exposure() -> list[Shot]:
    """Upright, with the light and the frame rate changing all the time."""
    cameras = along(np.linspace(0, 0.5, 130), (SIZE[1], SIZE[0]))
    gains = 1 + 0.45 * np.sin(np.linspace(0, 14, len(cameras)))
    return [Shot(each, 0.0, gain) for each, gain in zip(cameras, gains, strict=True)]


def cuts() -> list[Shot]:
    """Three pieces of the walk, the second backwards, that overlap."""
    ways = [np.linspace(0, 0.25, 60), np.linspace(0.4, 0.15, 60)]
    ways.append(np.linspace(0.35, 0.55, 50))
    return [Shot(camera) for way in ways for camera in along(way, SIZE)]


FILMS = (
    Film("stops-and-pan", "walks, stands, looks around fast", stops_and_pan),
    Film("shaking", "bursts of blur of one to five frames", shaking),
    Film(
        *("exposure", "light and frame rate change, stored on its side", exposure),
        quarter_turns=1,
        has_varying_rate=True,
    ),
    Film("cuts", "three pieces, one backwards", cuts),
    Film("film-stone-sign", "a telephone around a cairn, thinned before"),
    Film("beer-video71", "a telephone around a can, on plain tiles"),
)


def make(film: Film, folder: Path) -> Made:
    """Renders a film, once; of a shared one tells where it lies."""
    if film.shots is None:
        return Made(scene_folder(film.name) / "video.mp4")
    shots, path = film.shots(), folder / f"{film.name}.mp4"
    if not path.is_file():
        surfaces, sky = build_courtyard(0)

        def photograph(k: int) -> Bytes:
            image = render_image(surfaces, shots[k].camera, sky)
            return _exposed(image, shots[k], k)

        with thread_pool(2) as pool:
            pictures = list(pool.map(photograph, range(len(shots))))
        rates = np.random.default_rng(1).uniform(0.4, 1.6, len(pictures))
        durations = (rates / rates.mean()).tolist() if film.has_varying_rate else None
        stored = [
            np.ascontiguousarray(np.rot90(pixels, film.quarter_turns))
            for pixels in pictures
        ]
        part = folder / f"part-{path.name}"
        write_film(
            part, stored, quarter_turns=film.quarter_turns, durations=durations
        ).rename(path)
    poses = [camera_entry(shot.camera) for shot in shots]
    is_blurred = [bool(shot.blur_px >= _BLURRED_PX) for shot in shots]
    return Made(path, poses, is_blurred)


def write_reference(made: Made, names: dict[str, int], folder: Path) -> None:
    """`reference.json` of frames by name and number, where poses are known."""
    if made.poses is not None:
        images = {name: made.poses[number] for name, number in names.items()}
        text = json.dumps({"images": images})
        (folder / "reference.json").write_text(text, "utf-8")


def _turned(camera: Camera, angle_deg: float) -> Camera:
    """The camera turned to its right on its spot."""
    turn = Rotation.from_euler("y", -angle_deg, degrees=True).as_matrix()
    return replace(
        camera, rotation=turn @ camera.rotation, translation=turn @ camera.translation
    )


def _exposed(image: Float32, shot: Shot, number: int) -> Bytes:
    """The frame with its blur, its light and noise."""
    rng = np.random.default_rng([2, number])
    seen = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5))
    if shot.blur_px >= 1:
        side = 2 * int(np.ceil(shot.blur_px)) + 1
        kernel = np.zeros((side, side), np.float32)
        angle = rng.uniform(0, np.pi)
        way = shot.blur_px / 2 * np.array([np.cos(angle), np.sin(angle)])
        ends = side // 2 + np.array([-way, way])
        scaled = np.round(16 * ends).astype(int).tolist()
        cv2.line(kernel, scaled[0], scaled[1], 1.0, 1, cv2.LINE_AA, 4)
        seen = np.asarray(cv2.filter2D(seen, -1, kernel / kernel.sum()))
    return to_texture(seen * shot.gain + rng.normal(0, _NOISE, image.shape))
