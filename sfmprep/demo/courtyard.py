"""The demo scene: a courtyard that our own code builds, lights and photographs.

Two walls of a house, paving, and some twenty objects in front of them. Nothing is
downloaded; every texture is painted from random numbers at several scales, so that no
two bricks are alike. World axes: x east, y north, z up, metres; the camera walks from
the south to the east and looks into the corner.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sfmprep.demo.raycast import (
    Camera,
    Cylinder,
    Light,
    Rectangle,
    Sphere,
    Surface,
    Texture,
    look_at,
    render_image,
    with_light,
)
from sfmprep.demo.textures import (
    TEXELS,
    Colour,
    Painter,
    Rng,
    make_noise,
    paint_masonry,
    paint_paving,
    paint_poster,
    paint_window,
    paste,
    plank_painter,
    stone_painter,
    texture_shape,
    tint_noise,
    to_texture,
)
from sfmprep.devices import num_cores
from sfmprep.errors import ConfigError
from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool
from sfmprep.types import Bytes, Float32

_QUALITY = "exact: rendered"
_CONVENTION = (
    "world-to-camera, OpenCV axes (x right, y down, z forward): x_cam = R X + t;"
    " centre = -R^T t; K for COLMAP pixels (centre of the first one at 0.5, 0.5)"
)


def render_demo_scene(
    folder: Path,
    *,
    num_images: int = 24,
    size: tuple[int, int] = (960, 720),
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Writes photograph-like images of a courtyard and their true camera poses.

    `folder/images/0000.jpg` and on: JPEG of quality 95 without EXIF, taken on a walk
    of 110 degrees around the scene, in slowly changing light, with a little blur and
    noise. `folder/reference.json`: `R`, `t`, `K`, `width`, `height` of every image.
    The same arguments give the same files. A demo scene that is there already is
    written again.

    Args:
        folder: Made if it is missing.
        num_images: At least 2; with 24, neighbours overlap by some 90 %.
        size: (W, H) in pixels, at least 64 each.
        seed: For textures, path and light.
        progress: Sees one item per image.

    Raises:
        ConfigError: `num_images` or `size` is too small, or `folder` cannot be made, or
            holds images or a reference that are not of this scene.
    """
    if num_images < 2 or min(size) < 64:
        raise ConfigError(
            f"demo scene with {num_images=}, {size=}: expected at least 2 images of at"
            " least 64 x 64 pixels"
        )
    names = [f"{k:04d}.jpg" for k in range(num_images)]
    _refuse_other_files(folder, names)
    cameras = camera_walk(num_images, size, seed)
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"demo scene: folder {folder} cannot be made ({error.strerror}); name one"
            " that can be written"
        ) from error
    reference = {
        "convention": _CONVENTION,
        "quality": _QUALITY,
        "note": f"sfmprep demo scene, {seed=}; metres",
        "images": dict(zip(names, map(_entry, cameras), strict=True)),
    }
    # first, since its quality line is what allows the images to be written again
    (folder / "reference.json").write_text(json.dumps(reference, indent=1), "utf-8")
    surfaces, sky = build_courtyard(seed)

    def write_image(k: int) -> None:
        rendered = render_image(surfaces, cameras[k], sky)
        image = _photograph(rendered, k / (num_images - 1), seed)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (folder / "images" / names[k]).write_bytes(jpeg.tobytes())

    # at most four at once, since each takes some 200 MB
    with thread_pool(min(4, num_cores())) as pool:
        written = pool.map(write_image, range(num_images))
        for _ in progress(written, desc="render", total=num_images):
            pass


def _refuse_other_files(folder: Path, names: Sequence[str]) -> None:
    """Raises ConfigError if `folder` holds images or poses of something else."""
    reference, images = folder / "reference.json", folder / "images"
    present = {path.name for path in images.iterdir()} if images.is_dir() else set()
    ours = reference.is_file() and _QUALITY in reference.read_text("utf-8", "replace")
    if present - set(names) or ((present or reference.exists()) and not ours):
        raise ConfigError(
            f"demo scene: {folder} already holds other files (in images/, or"
            " reference.json). Nothing was written; name an empty or a new folder."
        )


def _entry(camera: Camera) -> dict[str, Any]:
    """The camera as an entry of reference.json."""
    return {
        "R": camera.rotation.tolist(),
        "t": camera.translation.tolist(),
        "K": camera.intrinsics.tolist(),
        "dist": [0.0, 0.0, 0.0, 0.0],
        "width": camera.size[0],
        "height": camera.size[1],
    }


def camera_walk(num_images: int, size: tuple[int, int], seed: int) -> list[Camera]:
    """The cameras of a hand-held walk of 110 degrees around the courtyard's middle."""
    rng = np.random.default_rng([seed, 1])
    middle = np.array([-0.7, 0.6, 1.15])
    cameras = []
    for way in np.linspace(0, 1, num_images):
        angle = np.radians(-100 + 110 * way)
        distance = 4.9 + 0.5 * np.sin(9 * way + 1) + rng.normal(0, 0.06)
        height = 1.6 + 0.4 * np.sin(14 * way) + rng.normal(0, 0.05)
        away = distance * np.array([np.cos(angle), np.sin(angle)])
        centre = np.array([*(middle[:2] + away), height])
        target = middle + rng.normal(0, 0.08, 3)
        cameras.append(look_at(centre, target, size, rng.normal(0, 1.5)))
    return cameras


def _photograph(image: Float32, way: float, seed: int) -> Bytes:
    """Adds exposure, white balance, contrast, blur and noise; `way` is 0..1."""
    rng = np.random.default_rng([seed, 2, round(1e6 * way)])
    exposure = 1.0 + 0.17 * np.sin(5 * way + 0.5) + rng.normal(0, 0.02)
    warmth = 0.06 * np.cos(4 * way)
    gains = exposure * np.array([1 - warmth, 1, 1 + warmth])
    contrast = 1 + 0.08 * np.sin(7 * way)
    blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5))
    exposed = 255 * (blurred * gains / 255).clip(0, 1) ** contrast
    return to_texture(exposed + rng.normal(0, 1.5, image.shape))


# ----------------------------------------------------------------------------- layout
def build_courtyard(seed: int) -> tuple[list[Surface], Texture]:
    """Returns the surfaces of the scene, in their light, and its sky."""
    rng = np.random.default_rng([seed, 0])
    wood, stone = plank_painter((104, 140, 176)), stone_painter((168, 178, 184))
    solids = _walls(rng)

    def box(*place: float, paint: Painter) -> None:
        solids.append(_box(rng, *place, paint=paint))

    def crate(*place: float, colour: Colour, label: str) -> None:
        box(*place, paint=plank_painter(colour, label))

    # x, y of the middle, size along both, lower and upper end, turn in degrees
    crate(0.75, 1.75, 0.95, 0.95, 0, 0.95, 20, colour=(92, 130, 168), label="FRAGILE")
    crate(0.7, 1.8, 0.6, 0.55, 0.95, 1.5, 52, colour=(110, 156, 192), label="No. 47")
    crate(1.75, 2.2, 0.7, 0.6, 0, 0.6, -12, colour=(90, 116, 140), label="PORT 1962")
    crate(-2.0, -0.9, 0.75, 0.75, 0, 0.7, -18, colour=(98, 140, 184), label="TEA")
    for size, low, high in ((0.62, 0, 0.12), (0.46, 0.12, 0.85), (0.58, 0.85, 0.95)):
        box(-0.3, -0.15, size, size, low, high, 33, paint=stone)
    solids.append([_ball(rng, (-0.3, -0.15, 1.26), 0.32, (140, 152, 172))])
    box(-3.0, 0.6, 0.42, 1.7, 0.42, 0.49, 0, paint=wood)
    box(-3.0, 1.2, 0.36, 0.1, 0, 0.42, 0, paint=stone)
    box(-3.0, 0.0, 0.36, 0.1, 0, 0.42, 0, paint=stone)
    box(-0.9, 3.1, 1.7, 0.8, 0, 0.17, 0, paint=stone)
    box(-0.9, 3.28, 1.5, 0.44, 0.17, 0.34, 0, paint=stone)
    solids.append(_advertising_column(rng, (-1.75, 1.6), 0.44, 2.3))
    for x, y, radius in ((-2.75, 2.85, 0.3), (2.75, 2.95, 0.34), (-1.3, -1.8, 0.2)):
        solids += _shrub(rng, (x, y), radius)
    return with_light(solids, _daylight(), 0.07), _sky()


def _walls(rng: Rng) -> list[list[Surface]]:
    """The ground, the north and the west wall with sills, lintels and pillars."""
    west, east, south, north, top = -3.5, 7.5, -7.0, 3.5, 3.9
    long, deep = east - west, north - south
    brick = paint_masonry(
        rng, long, top, course=0.13, length=0.3, colour=(100, 118, 166)
    )
    ashlar = paint_masonry(
        rng, deep, top, course=0.22, length=0.4, colour=(150, 172, 188)
    )
    paste(brick, paint_window(rng, 1.1, 1.4), 4.1, 1.4)
    paste(brick, paint_window(rng, 1.1, 1.4), 6.9, 1.4)
    door = plank_painter((76, 104, 88), "7")(rng, 1.0, 2.1)
    paste(brick, door, 2.1, top - 0.34 - 2.1)
    for title, width, height, x, y in (
        ("JAZZ NIGHT", 0.7, 1.0, 1.05, 1.75),
        ("BAKERY", 0.6, 0.85, 3.35, 1.8),
        ("To the harbour", 0.9, 0.6, 5.55, 1.9),
    ):
        paste(brick, paint_poster(rng, width, height, title), x, y)
    for y in (-1.3, 1.1):
        paste(ashlar, paint_window(rng, 1.0, 1.3), y - south, 1.2)
    paste(ashlar, paint_poster(rng, 0.75, 1.05, "CIRCUS"), 0.05 - south, 1.75)
    paste(ashlar, paint_poster(rng, 0.6, 0.8, "OPEN AIR"), -3.0 - south, 1.9)
    ground = paint_paving(rng, long, deep)
    eastward, upward = np.array([long, 0.0, 0.0]), np.array([0.0, 0.0, top])
    northward = np.array([0.0, deep, 0.0])
    corner = np.array([west, north, 0.0])
    flat: list[list[Surface]] = [
        [Rectangle(texture=t, corner=c, right=r, down=d)]
        for t, c, r, d in (
            (ground, corner, eastward, -northward),
            (brick, corner + upward, eastward, -upward),
            (ashlar, corner + upward - northward, northward, -upward),
        )
    ]
    stone = stone_painter((178, 186, 190), 0.07)
    for low, high in ((1.02, 1.1), (2.5, 2.66)):
        for x in (4.65, 7.45):
            place = (west + x, north - 0.07, 1.35, 0.14, low, high, 0)
            flat.append(_box(rng, *place, paint=stone))
        for y in (-0.8, 1.6):
            place = (west + 0.07, y, 0.14, 1.25, low + 0.3, high + 0.2, 0)
            flat.append(_box(rng, *place, paint=stone))
    for x, y in ((west + 0.15, north - 0.15), (2.7, north - 0.1), (west + 0.1, -1.9)):
        flat.append(_box(rng, x, y, 0.36, 0.36, 0, top, 0, paint=stone))
    return flat


def _box(
    rng: Rng,
    x: float,
    y: float,
    width: float,
    depth: float,
    low: float,
    high: float,
    turn_deg: float,
    *,
    paint: Painter,
) -> list[Surface]:
    """The faces of an upright box, each with its own texture; (x, y) is its middle."""
    cos, sin = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    across = width * np.array([cos, sin, 0.0])
    along = depth * np.array([-sin, cos, 0.0])
    up = np.array([0.0, 0.0, high - low])
    foot = np.array([x, y, low])
    faces = [
        (-across - along, across, -up),  # south; right and down as seen from outside
        (across - along, along, -up),
        (across + along, -across, -up),
        (-across + along, -along, -up),
        (-across + along, across, -along),  # top
        (-across - along, across, along),  # bottom
    ]
    surfaces: list[Surface] = []
    for number, (side, right, down) in enumerate(faces):
        size = (float(np.linalg.norm(right)), float(np.linalg.norm(down)))
        surfaces.append(
            Rectangle(
                texture=paint(rng, *size),
                corner=foot + side / 2 + (0 if number == 5 else up),
                right=right,
                down=down,
            )
        )
    return surfaces


def _advertising_column(
    rng: Rng, place: tuple[float, float], radius: float, height: float
) -> list[Surface]:
    """Posters around an upright cylinder, with a lid."""
    around = 2 * np.pi * radius
    paper = tint_noise((165, 178, 184), make_noise(rng, around, height, 0.3), 0.07)
    titles = ("BOOKS", "REGATTA", "CINEMA", "Lost dog", "VOTE 3")
    more = ("Organ", "24 MAY", "DANCE", "To let", "Choir")
    for k, (upper, lower) in enumerate(zip(titles, more, strict=True)):
        width, top = rng.uniform(0.4, 0.5), rng.uniform(0.15, 0.5)
        left = 0.03 + 0.55 * k
        paste(paper, paint_poster(rng, width, 0.75, upper), left, top)
        paste(paper, paint_poster(rng, width, 0.6, lower), left, top + 0.9)
    foot = np.array([*place, 0.0])
    side = Cylinder(texture=paper, foot=foot, radius=radius, height=height)
    return [side, _lid(rng, place, height, radius, stone_painter((120, 126, 126)))]


def _lid(
    rng: Rng, place: tuple[float, float], height: float, radius: float, paint: Painter
) -> Rectangle:
    """A level disc."""
    return Rectangle(
        texture=paint(rng, 2 * radius, 2 * radius),
        corner=np.array([place[0] - radius, place[1] + radius, height]),
        right=np.array([2 * radius, 0.0, 0.0]),
        down=np.array([0.0, -2 * radius, 0.0]),
        is_round=True,
    )


def _ball(
    rng: Rng, centre: tuple[float, float, float], radius: float, colour: Colour
) -> Sphere:
    """A ball whose texture is as fine at the poles as at the equator."""
    rows, columns = texture_shape(2 * np.pi * radius, np.pi * radius)
    ball = Sphere(
        texture=np.empty((rows, columns, 3), np.uint8),
        centre=np.array(centre),
        radius=radius,
    )
    row, column = np.indices((rows, columns)).reshape(2, -1)
    _, normals = ball.sample((column + 0.5) / columns, (row + 0.5) / rows)
    x, y, z = ((normals + 1) * radius * TEXELS).astype(np.float32)
    noise = np.zeros((rows, columns), np.float32)
    # noise in space, as the sum of three noises that each vary in a plane
    for across, down in ((x, y), (y, z), (z, x)):
        plane = make_noise(rng, 2 * radius + 0.1, 2 * radius + 0.1, 0.1)
        noise += cv2.remap(
            plane,
            across.reshape(rows, columns),
            down.reshape(rows, columns),
            cv2.INTER_LINEAR,
        )
    return replace(ball, texture=tint_noise(colour, noise, 0.1))


def _shrub(rng: Rng, place: tuple[float, float], radius: float) -> list[list[Surface]]:
    """A clipped round shrub in a clay pot."""
    height = 1.5 * radius
    clay, soil = stone_painter((92, 122, 186), 0.07), stone_painter((50, 62, 76), 0.2)
    pot = Cylinder(
        texture=clay(rng, 2 * np.pi * radius, height),
        foot=np.array([*place, 0.0]),
        radius=radius,
        height=height,
    )
    crown = _ball(rng, (*place, height + 0.8 * radius), 1.05 * radius, (62, 116, 92))
    return [[pot, _lid(rng, place, height, radius, soil)], [crown]]


def _daylight() -> Light:
    """A hazy sun in the south-east and a bluish sky."""
    number = np.arange(32)
    height = 1 - (number + 0.5) / 32
    angle = number * np.pi * (3 - np.sqrt(5))  # Fibonacci lattice on the hemisphere
    ring = np.sqrt(1 - height**2)
    sky = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    radius, angle = 0.05 * np.sqrt((number[:12] + 0.5) / 12), angle[:12]
    sun = np.array([0.5, -0.62, 0.6]) + np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), 0 * radius], axis=1
    )
    sun /= np.linalg.norm(sun, axis=1, keepdims=True)
    return Light(
        directions=np.concatenate([sky, sun]),
        colours=np.concatenate(
            [
                np.repeat([[0.42, 0.38, 0.34]], 32, axis=0) / 16,
                np.repeat([[0.92, 1.0, 1.06]], 12, axis=0) / 12,
            ]
        ),
        ambient=np.array([0.10, 0.11, 0.12]),
    )


def _sky() -> Texture:
    """Haze at the horizon, blue towards the zenith."""
    horizon, zenith = np.array([236.0, 230, 224]), np.array([196.0, 150, 110])
    share = np.linspace(0, 1, 256)[:, None, None] ** 3
    return to_texture(zenith + share * (horizon - zenith))
