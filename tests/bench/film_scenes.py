"""Films of the courtyard with exact poses: slow, fast, turning, with moving things."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from sfmprep.capture.frames import take_frames
from sfmprep.config import FilmConfig
from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.demo.raycast import Camera, look_at, render_image
from sfmprep.demo.textures import to_texture
from sfmprep.models.build import build_flow_estimator
from sfmprep.models.flow.pictures import FlowOfPictures
from sfmprep.threads import thread_pool
from sfmprep.types import Float64
from tests.bench.scoreboard.scenes import Scene, rendered, shared
from tests.bench.shared import scene_folder
from tests.support.moving_things import camera_entry, moving_things

SIZE = (640, 480)
_NOISE = 1.5  # grey levels
_FRAMES_TURNED = 20  # in which the camera stands
_TURN_DEG = 50.0


def slow(folder: Path) -> None:
    """The first half of a walk of 110 degrees in 60 frames."""
    _render(folder, camera_walk(60, SIZE, 0)[:30])


def fast(folder: Path) -> None:
    """The whole walk in 24 frames."""
    _render(folder, camera_walk(24, SIZE, 0))


def with_turn(folder: Path) -> None:
    """The walk in 40 frames, in the middle of which the camera looks around."""
    walk = camera_walk(40, SIZE, 0)
    before, after = walk[:20], walk[20:]
    _render(folder, [*before, *_looks_around(before[-1]), *after])


def with_moving_things(folder: Path) -> None:
    """The first half of the walk in 40 frames, while three things move through it."""
    _render(folder, camera_walk(80, SIZE, 0)[:40], has_things=True)


def only_turn(folder: Path) -> None:
    """A camera that looks around and does nothing else."""
    _render(folder, _looks_around(camera_walk(2, SIZE, 0)[0]))


def flow_of_films() -> FlowOfPictures:
    """What tells how far a film has moved."""
    return FlowOfPictures(build_flow_estimator(FilmConfig().flow))


def keyframes(name: str, folder: Path) -> None:
    """The frames that sfmprep takes of a shared film."""
    take_frames(
        *(scene_folder(name) / "video.mp4", name, folder, "images"),
        flow=flow_of_films(),
        max_overlap=FilmConfig().max_overlap,
        most=None,
    )


FILMS: tuple[Scene, ...] = (
    rendered("film-fast", fast, film=True),
    replace(rendered("film-moving-things", with_moving_things, film=True), every=2),
    replace(rendered("film-with-turn", with_turn, film=True), every=2),
    shared("tum-fr2-desk20", film=True),
    rendered("film-stone-sign", partial(keyframes, "film-stone-sign"), film=True),
    rendered("film-slow", slow, film=True),
    replace(shared("beer-video71", film=True), every=2),
)


def _looks_around(camera: Camera) -> list[Camera]:
    """To one side and back, from one spot."""
    centre = -camera.rotation.T @ camera.translation
    angles = _TURN_DEG * np.sin(np.linspace(0, np.pi, _FRAMES_TURNED + 2)[1:-1])
    return [_turned(camera, centre, np.radians(angle)) for angle in angles]


def _turned(camera: Camera, centre: Float64, angle: float) -> Camera:
    cos, sin = np.cos(angle), np.sin(angle)
    about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    forward = about_z @ camera.rotation[2]
    return look_at(centre, centre + forward, camera.size)


def _render(
    folder: Path, cameras: Sequence[Camera], *, has_things: bool = False
) -> None:
    """Writes JPEG of quality 95 with a little blur and noise, and the reference."""
    surfaces, sky = build_courtyard(0)
    (folder / "images").mkdir(parents=True)

    def write(k: int) -> None:
        things = moving_things(k / (len(cameras) - 1)) if has_things else []
        image = render_image([*surfaces, *things], cameras[k], sky)
        noise = np.random.default_rng([2, k]).normal(0, _NOISE, image.shape)
        blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5))
        path = str(folder / "images" / f"{k:04d}.jpg")
        cv2.imwrite(path, to_texture(blurred + noise), [cv2.IMWRITE_JPEG_QUALITY, 95])

    with thread_pool(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(write, range(len(cameras))))
    images = {f"{k:04d}.jpg": camera_entry(camera) for k, camera in enumerate(cameras)}
    (folder / "reference.json").write_text(json.dumps({"images": images}), "utf-8")
