"""Blurred photographs are told from photographs of what has no details."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray

from sfmprep.capture.image_set import ImageSet
from sfmprep.dataset.sharpness import relative_sharpness
from sfmprep.geometry.views import ModelArrays, Observations, Views

SIZE = 640, 480
FOCAL, DEPTH = 600.0, 10.0
STEP = 40  # pixels from one photograph to the next
Grey = NDArray[np.uint8]


def wall(seed: int = 0) -> Grey:
    """Details of all sizes, as natural pictures have them; plain from the middle on."""
    rng = np.random.default_rng(seed)
    shape = (SIZE[1], SIZE[0] + 20 * STEP)
    paint = np.zeros(shape)
    for octave in range(6):
        side = [max(length >> octave, 1) for length in shape[::-1]]
        grain = rng.normal(0, 1, side[::-1]).astype(np.float32)
        paint += cv2.resize(grain, shape[::-1], interpolation=cv2.INTER_CUBIC)
    paint[:, shape[1] // 2 :] = cv2.GaussianBlur(paint, (0, 0), 6)[:, shape[1] // 2 :]
    return np.clip(128 + 20 * paint, 0, 255).astype(np.uint8)


def shaken(pixels: Grey, length: int) -> Grey:
    kernel = np.zeros((length + 1, length + 1), np.float32)
    cv2.line(kernel, (0, 0), (length, length // 2), 1.0)
    return np.asarray(cv2.filter2D(pixels, -1, kernel / kernel.sum()), np.uint8)


def out_of_focus(pixels: Grey, sigma: float) -> Grey:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.uint8)


def capture(
    folder: Path,
    change: Callable[[Grey], Grey] = lambda pixels: pixels,
    *,
    changed: str = "3.png",
    starts: Sequence[int] = range(0, 7 * STEP, STEP),
) -> tuple[ImageSet, ModelArrays]:
    """Photographs of a wall by a camera that moves along it; one of them is changed."""
    paint = wall()
    names = [f"{number}.png" for number in range(len(starts))]
    for name, start in zip(names, starts, strict=True):
        pixels = paint[:, start : start + SIZE[0]]
        cv2.imwrite(str(folder / name), change(pixels) if name == changed else pixels)
    rng = np.random.default_rng(1)
    spots = rng.uniform((8, 8), (paint.shape[1] - 8, SIZE[1] - 8), (1500, 2))
    middle = np.array(SIZE) / 2
    xyz = np.column_stack(
        [(spots - middle) * DEPTH / FOCAL, np.full(len(spots), DEPTH)]
    )
    xy = spots[:, None] - np.column_stack([starts, np.zeros(len(starts))])
    inside = ((xy > 4) & (xy < np.array(SIZE) - 4)).all(axis=2)
    seen_by_two = inside.sum(axis=1) >= 2
    xyz, xy, inside = xyz[seen_by_two], xy[seen_by_two], inside[seen_by_two]
    point, view = np.nonzero(inside)
    count = len(starts)
    camera = pycolmap.Camera(
        model="SIMPLE_PINHOLE",
        width=SIZE[0],
        height=SIZE[1],
        params=[FOCAL, *middle],
    )
    arrays = ModelArrays(
        views=Views(
            ids=np.arange(count),
            names=tuple(names),
            cameras=(camera,) * count,
            rotations=np.tile(np.eye(3), (count, 1, 1)),
            centres=np.array([(s * DEPTH / FOCAL, 0.0, 0.0) for s in starts]),
            focals=np.full(count, FOCAL),
        ),
        point_ids=np.arange(len(xyz), dtype=np.uint64),
        xyz=xyz,
        observations=Observations(
            point=point,
            view=view,
            keypoint=np.zeros(len(point), np.int64),
            xy=xy[inside],
            ray=np.zeros((len(point), 3)),
        ),
    )
    return ImageSet.scan(folder), arrays


@pytest.mark.parametrize("length", [4, 8, 16])
def test_shaken_photograph_is_told_and_no_other(tmp_path: Path, length: int) -> None:
    found = relative_sharpness(*capture(tmp_path, lambda p: shaken(p, length)))

    assert len(found) == 7
    assert found.pop("3.png") < 0.7
    assert min(found.values()) > 0.9


def test_a_softer_camera_is_not_held_against_a_sharper_one(tmp_path: Path) -> None:
    images, arrays = capture(tmp_path)
    infos = dict(images.infos)
    for name in ("1.png", "3.png", "5.png"):
        path = str(tmp_path / name)
        pixels = np.asarray(cv2.imread(path, cv2.IMREAD_GRAYSCALE), np.uint8)
        cv2.imwrite(path, out_of_focus(pixels, 2.0))
        infos[name] = replace(infos[name], model="soft")

    found = relative_sharpness(replace(images, infos=infos), arrays)

    assert min(found.values()) > 0.9
    assert min(relative_sharpness(images, arrays).values()) < 0.7


def test_the_more_out_of_focus_the_less_sharp(tmp_path: Path) -> None:
    found = []
    for sigma in (1.0, 2.0, 4.0):
        images, arrays = capture(tmp_path, lambda p, s=sigma: out_of_focus(p, s))
        found.append(relative_sharpness(images, arrays)["3.png"])

    assert 0.7 > found[0] > found[1] > found[2]


def test_photographs_of_a_plain_wall_are_not_blurred(tmp_path: Path) -> None:
    starts = range(0, 20 * STEP, 2 * STEP)  # the last see only what is plain
    found = relative_sharpness(*capture(tmp_path, starts=starts))

    assert len(found) == 10
    assert min(found.values()) > 0.9


def test_dark_photograph_of_little_contrast_is_not_blurred(tmp_path: Path) -> None:
    found = relative_sharpness(
        *capture(tmp_path, lambda p: (30 + 0.4 * p).astype(np.uint8))
    )

    assert min(found.values()) > 0.85


def test_half_of_the_photographs_shaken_are_told_by_the_other_half(
    tmp_path: Path,
) -> None:
    images, arrays = capture(tmp_path)
    for number in (1, 3, 5):
        path = str(tmp_path / f"{number}.png")
        pixels = np.asarray(cv2.imread(path, cv2.IMREAD_GRAYSCALE), np.uint8)
        cv2.imwrite(path, shaken(pixels, 8))

    found = relative_sharpness(images, arrays)

    told = {name for name, share in found.items() if share < 0.75}
    assert told == {"1.png", "3.png", "5.png"}


def test_photograph_from_near_is_held_against_none_from_afar(tmp_path: Path) -> None:
    images, arrays = capture(tmp_path)
    pixels = np.asarray(cv2.imread(str(tmp_path / "3.png")), np.uint8)
    near = cv2.resize(pixels[160:320, 213:427], SIZE, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "3.png"), near)
    observations, views = arrays.observations, arrays.views
    middle = np.array(SIZE) / 2
    is_own = observations.view == 3
    xy = np.where(is_own[:, None], 3 * (observations.xy - middle) + middle, 0)
    xy += np.where(is_own[:, None], 0, observations.xy)
    kept = ((xy > 4) & (xy < np.array(SIZE) - 4)).all(axis=1)
    moved = replace(observations, xy=xy).select(kept)
    numbers = np.unique(observations.point[kept])
    focals = views.focals.copy()
    focals[3] *= 3
    arrays = replace(
        arrays,
        views=replace(views, focals=focals),
        point_ids=arrays.point_ids[numbers],
        xyz=arrays.xyz[numbers],
        observations=moved,
    )

    found = relative_sharpness(images, arrays)

    assert "3.png" not in found
    assert len(found) == 6 and min(found.values()) > 0.9


def test_only_who_is_asked_and_who_is_near_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = range(0, 20 * STEP, 2 * STEP)
    images, arrays = capture(
        tmp_path, lambda p: shaken(p, 8), changed="0.png", starts=starts
    )
    read = []

    def noted(self: ImageSet, name: str) -> NDArray[np.uint8]:
        read.append(name)
        return np.asarray(cv2.imread(str(self.path(name))), np.uint8)

    monkeypatch.setattr(ImageSet, "read_pixels", noted)
    found = relative_sharpness(images, arrays, names=["0.png"])

    assert found.keys() == {"0.png"} and found["0.png"] < 0.75
    assert "9.png" not in read  # which sees nothing of the same
    assert relative_sharpness(images, arrays, names=[]) == {}


def test_too_few_photographs_tell_nothing(tmp_path: Path) -> None:
    images, arrays = capture(tmp_path, starts=(0, STEP))

    assert relative_sharpness(images, arrays) == {}
    none = np.empty(0, np.int64)
    empty = replace(
        arrays,
        xyz=np.empty((0, 3)),
        point_ids=np.empty(0, np.uint64),
        observations=arrays.observations.select(none),
    )
    assert relative_sharpness(images, empty) == {}
