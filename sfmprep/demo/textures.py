"""Painted textures of the demo scene: masonry, paving, planks, stone, posters, windows.

A texture is [H, W, 3] uint8 BGR as displayed, `TEXELS` to the metre. Each is painted
from random numbers at several scales, so that nothing repeats and every patch can be
told from every other.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from sfmprep.demo.raycast import Texture
from sfmprep.types import Float32, Float64

Rng = np.random.Generator
Colour = tuple[float, float, float]  # BGR as displayed, 0..255
Painter = Callable[[Rng, float, float], Texture]  # of a width and height in metres

TEXELS = 256  # per metre


def texture_shape(width: float, height: float) -> tuple[int, int]:
    """Rows and columns of a texture of this size in metres."""
    return max(2, round(height * TEXELS)), max(2, round(width * TEXELS))


def make_noise(
    rng: Rng, width: float, height: float, cell: float, *, stretch: float = 1.0
) -> Float32:
    """Smooth noise [H, W] of mean 0 and deviation 1.

    Octaves from `cell` metres (`stretch` times as long along the width) down to two
    texels are added, each with 0.7 of the amplitude of the one before.
    """
    rows, columns = texture_shape(width, height)
    total, weight = np.zeros((1, 1), np.float32), 1.0
    cell *= TEXELS
    while cell >= 2 or weight == 1:
        shape = (int(rows / cell) + 4, int(columns / (cell * stretch)) + 4)
        # the coarser octaves are enlarged with the finer ones: a third of the work
        total = _enlarged(total, shape)
        total += np.float32(weight) * rng.standard_normal(shape, np.float32)
        cell, weight = cell / 2, weight * 0.7
    total = _enlarged(total, (rows, columns))
    return np.asarray((total - total.mean()) / max(float(total.std()), 1e-6))


def _enlarged(image: Float32, shape: tuple[int, int]) -> Float32:
    size = shape[1], shape[0]
    return np.asarray(
        cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.float32
    )


def tint_noise(colour: Colour, noise: Float32, strength: float) -> Texture:
    """One colour whose brightness varies by `strength` with the noise [H, W]."""
    return to_texture(_times(1 + np.float32(strength) * noise, colour))


def _times(brightness: Float32, colour: Colour) -> Float32:
    """[H, W, 3] of a brightness [H, W] and a colour."""
    return np.multiply.outer(brightness, np.array(colour, np.float32))


def to_texture(image: Float32 | Float64) -> Texture:
    """Rounds and clips to 0..255."""
    return np.rint(image).clip(0, 255).astype(np.uint8)


def paint_masonry(
    rng: Rng,
    width: float,
    height: float,
    *,
    course: float,
    length: float,
    colour: Colour,
) -> Texture:
    """Stones of uneven size and colour in light mortar.

    `course` is the mean height of a row of stones and `length` that of a stone, metres.
    """
    rows, columns = texture_shape(width, height)
    x = np.arange(columns, dtype=np.float32) / TEXELS
    y = np.arange(rows, dtype=np.float32)[:, None] / TEXELS
    x = x + 0.006 * make_noise(rng, width, height, 0.15)
    y = y + 0.005 * make_noise(rng, width, height, 0.2)
    beds = _uneven_steps(rng, course, height)
    number = np.searchsorted(beds, y) - 1
    gap = np.minimum(y - beds[number], beds[number + 1] - y)
    colours = np.empty((rows, columns, 3), np.float32)
    for k in range(int(number.min()), int(number.max()) + 1):
        here = number == k
        ends = _uneven_steps(rng, length, width)
        stone = np.searchsorted(ends, x[here]) - 1
        end_gap = np.minimum(x[here] - ends[stone], ends[stone + 1] - x[here])
        gap[here] = np.minimum(gap[here], end_gap)
        colours[here] = _uneven_colours(rng, colour, len(ends))[stone]
    colours *= (1 + 0.1 * make_noise(rng, width, height, 0.06))[..., None]
    grain = make_noise(rng, width, height, 0.03)
    mortar = _times(1 + np.float32(0.06) * grain, (160.0, 172, 178))
    colours -= mortar
    colours *= ((gap - 0.004) / 0.006).clip(0, 1)[..., None]
    colours += mortar
    colours *= (1 + 0.06 * make_noise(rng, width, height, 1.2))[..., None]
    return to_texture(colours)


def _uneven_steps(rng: Rng, step: float, length: float) -> Float32:
    """Positions some `step` apart, from before 0 to behind `length`."""
    steps = step * rng.uniform(0.65, 1.35, int(2 * length / step) + 8)
    return np.asarray(np.cumsum(steps) - 3 * step, np.float32)


def _uneven_colours(rng: Rng, colour: Colour, count: int) -> Float32:
    """Colours [count, 3] that vary in brightness and a little in hue."""
    brightness = rng.normal(1, 0.16, (count, 1))
    hue = rng.normal(1, 0.025, (count, 3))
    return np.asarray(np.array(colour) * brightness * hue, np.float32)


def paint_paving(rng: Rng, width: float, height: float) -> Texture:
    """Irregular flagstones (Voronoi cells of jittered points) with dark joints."""
    rows, columns = texture_shape(width, height)
    step = 0.5 * TEXELS
    sites = np.indices((int(rows / step) + 1, int(columns / step) + 1)).reshape(2, -1).T
    sites = ((sites + rng.uniform(0.05, 0.95, sites.shape)) * step).astype(int)
    sites = sites[(sites < (rows, columns)).all(axis=1)]
    elsewhere = np.ones((rows, columns), np.uint8)
    elsewhere[tuple(sites.T)] = 0
    _, cell = cv2.distanceTransformWithLabels(
        elsewhere, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    inside = np.ones((rows, columns), np.uint8)
    inside[1:] &= cell[1:] == cell[:-1]
    inside[:, 1:] &= cell[:, 1:] == cell[:, :-1]
    gap = cv2.distanceTransform(inside, cv2.DIST_L2, 5) / np.float32(TEXELS)
    gap += 0.004 * make_noise(rng, width, height, 0.1)
    brightness = 1 + 0.09 * make_noise(rng, width, height, 0.25)
    brightness *= 0.4 + 0.6 * (gap / 0.014).clip(0, 1)
    colours = _uneven_colours(rng, (158.0, 168, 176), int(cell.max()) + 1)[cell]
    return to_texture(colours * brightness[..., None])


def stone_painter(colour: Colour, strength: float = 0.1) -> Painter:
    """Paints one colour with noise of this strength."""

    def paint(rng: Rng, width: float, height: float) -> Texture:
        return tint_noise(colour, make_noise(rng, width, height, 0.12), strength)

    return paint


def plank_painter(colour: Colour, label: str = "") -> Painter:
    """Paints horizontal boards with grain, and perhaps a stencilled label."""

    def paint(rng: Rng, width: float, height: float) -> Texture:
        brightness = 1 + 0.1 * make_noise(rng, width, height, 0.04, stretch=12)
        brightness *= 1 + 0.07 * make_noise(rng, width, height, 0.3)
        edge = 0
        while edge < len(brightness):
            board = round(rng.uniform(0.09, 0.16) * TEXELS)
            brightness[edge : edge + board] *= rng.normal(1, 0.1)
            brightness[edge : edge + 3] *= 0.35
            edge += board
        image = to_texture(_times(brightness, colour))
        if label:
            _write(image, label, 0.1 * width, 0.62 * height, 0.8 * width, (40, 45, 60))
        return image

    return paint


def paint_poster(rng: Rng, width: float, height: float, title: str) -> Texture:
    """Printed paper: a title, coloured shapes and four lines of small print."""
    rows, columns = texture_shape(width, height)
    paper = rng.uniform(120, 245) * rng.uniform(0.75, 1.0, 3)
    image = np.empty((rows, columns, 3), np.uint8)
    image[:] = paper.astype(np.uint8)
    for _ in range(14):
        x, y = rng.uniform(0, columns), rng.uniform(0.25, 0.72) * rows
        size = rng.uniform(0.04, 0.2) * columns
        colour = rng.uniform(30, 230, 3).tolist()
        if rng.random() < 0.5:
            cv2.circle(image, (int(x), int(y)), int(size), colour, -1, cv2.LINE_AA)
        else:
            turns = np.sort(rng.uniform(0, 2 * np.pi, 3 + int(rng.integers(3))))
            shape = np.stack([x + size * np.cos(turns), y + size * np.sin(turns)], 1)
            cv2.fillPoly(image, [shape.astype(np.int32)], colour, cv2.LINE_AA)
    ink: Colour = (25, 25, 30) if paper.mean() > 140 else (235, 240, 240)
    _write(image, title, 0.06 * width, 0.16 * height, 0.88 * width, ink)
    for line in range(4):
        text = "".join(rng.choice(list("abcdeghilmnorstu 0123456789"), 24))
        y = (0.82 + 0.045 * line) * height
        _write(image, text, 0.08 * width, y, 0.84 * width, ink)
    return to_texture(
        image * (1 + 0.05 * make_noise(rng, width, height, 0.15))[..., None]
    )


def paint_window(rng: Rng, width: float, height: float) -> Texture:
    """A light frame around four dark panes with curtains."""
    image = tint_noise(
        (190, 200, 205), make_noise(rng, width, height, 0.05), strength=0.05
    )
    bar, frame = 0.035, 0.07
    across, down = (width - 2 * frame - bar) / 2, (height - 2 * frame - bar) / 2
    for i in range(2):
        for j in range(2):
            glass = make_noise(rng, across, down, 0.6)
            pane = tint_noise((70, 62, 56), glass, 0.12)
            drape = pane.shape[1] // 3
            folds = make_noise(rng, drape / TEXELS, down, 0.05)[:1]
            here = slice(0, drape) if i == 0 else slice(-drape, None)
            pane[:, here] = tint_noise((150, 160, 165), folds, 0.1)
            paste(image, pane, frame + i * (across + bar), frame + j * (down + bar))
    return image


def paste(wall: Texture, part: Texture, x: float, y: float) -> None:
    """Puts a texture on another; (x, y) metres from its upper left corner."""
    row, column = round(y * TEXELS), round(x * TEXELS)
    wall[row : row + part.shape[0], column : column + part.shape[1]] = part


def _write(
    image: Texture, text: str, x: float, y: float, width: float, ink: Colour
) -> None:
    """Writes text of this width in metres, its baseline's start at (x, y) metres."""
    font = cv2.FONT_HERSHEY_DUPLEX
    scale = width * TEXELS / cv2.getTextSize(text, font, 1, 1)[0][0]
    place = (round(x * TEXELS), round(y * TEXELS))
    thick = max(1, round(1.6 * scale))
    cv2.putText(image, text, place, font, scale, ink, thick, cv2.LINE_AA)
