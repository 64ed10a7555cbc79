"""Masks: where they come from, how they are turned and resized, what they drop."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import check_masks, drop_masked, has_masks, read_mask
from sfmprep.coords import stored_pixels, upright_pixels
from sfmprep.errors import ImageError
from sfmprep.types import Features

Pixels = NDArray[np.uint8]


def pattern(width: int = 60, height: int = 40) -> Pixels:
    """A mask without any symmetry: white but for one corner and a spot."""
    mask = np.full((height, width), 255, np.uint8)
    mask[: height // 4, : width // 2] = 0
    mask[height // 2, width - 4 :] = 0
    return mask


def write(path: Path, pixels: Pixels, orientation: int = 1, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    if orientation != 1:
        tags[0x112] = orientation
    Image.fromarray(pixels).save(path, exif=tags, **options)
    return path


def photograph(
    root: Path, name: str = "a.jpg", size: tuple[int, int] = (60, 40), turn: int = 1
) -> Path:
    grey = np.full((size[1], size[0], 3), 90, np.uint8)
    return write(root / "images" / name, grey, turn)


def scan(root: Path) -> ImageSet:
    return ImageSet.scan(root / "images", mask_root=root / "masks")


def features(xy: list[tuple[float, float]], size: tuple[int, int]) -> Features:
    rows = np.arange(len(xy), dtype=np.float32)
    return Features(
        xy=np.array(xy, np.float32).reshape(-1, 2),
        scores=rows,
        descriptors=np.stack((rows, -rows), axis=1),
        image_size=size,
        orientation=6,
        scale=rows + 10,
        angle=rows / 10,
    )


# ---------------------------------------------------------------------------- sources
@pytest.mark.parametrize(
    "mask", ["b/a.jpg.png", "b/a.png", "b/a.PNG", "b/a.jpg.tif", "b/a.webp"]
)
def test_mask_is_found_by_its_name(tmp_path: Path, mask: str) -> None:
    photograph(tmp_path, "b/a.jpg")
    write(tmp_path / "masks" / mask, pattern())
    found = read_mask(scan(tmp_path), "b/a.jpg")
    assert found is not None
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, pattern() > 0)


def test_full_name_comes_before_the_stem(tmp_path: Path) -> None:
    photograph(tmp_path)
    write(tmp_path / "masks/a.jpg.png", pattern())
    write(tmp_path / "masks/a.png", 255 - pattern())
    np.testing.assert_array_equal(read_mask(scan(tmp_path), "a.jpg"), pattern() > 0)


def test_mask_file_comes_before_transparency(tmp_path: Path) -> None:
    rgba = np.dstack((*[pattern()] * 3, 255 - pattern()))
    write(tmp_path / "images/a.png", rgba)
    write(tmp_path / "masks/a.png", pattern())
    np.testing.assert_array_equal(read_mask(scan(tmp_path), "a.png"), pattern() > 0)


def test_image_without_mask_has_none(tmp_path: Path) -> None:
    photograph(tmp_path)
    images = ImageSet.scan(tmp_path / "images")
    assert read_mask(images, "a.jpg") is None
    assert not has_masks(images)
    check_masks(images)


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_transparency_is_the_mask_as_stored(
    tmp_path: Path, suffix: str, turn: int
) -> None:
    rgba = np.dstack((*[np.full((40, 60), 200, np.uint8)] * 3, pattern()))
    options = {"lossless": True} if suffix == "webp" else {}
    write(tmp_path / f"images/a.{suffix}", rgba, turn, **options)
    images = ImageSet.scan(tmp_path / "images")
    np.testing.assert_array_equal(read_mask(images, f"a.{suffix}"), pattern() > 0)
    assert has_masks(images)


def test_transparent_colour_of_a_palette_is_the_mask(tmp_path: Path) -> None:
    image = Image.fromarray((pattern() > 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images/a.png", transparency=0)
    images = ImageSet.scan(tmp_path / "images")
    np.testing.assert_array_equal(read_mask(images, "a.png"), pattern() > 0)


def test_opaque_transparency_is_no_mask(tmp_path: Path) -> None:
    write(tmp_path / "images/a.png", np.full((40, 60, 4), 255, np.uint8))
    images = ImageSet.scan(tmp_path / "images")
    assert images.infos["a.png"].has_alpha
    assert read_mask(images, "a.png") is None
    assert not has_masks(images)


# ----------------------------------------------------------------------------- values
def test_values_below_128_are_ignored(tmp_path: Path) -> None:
    photograph(tmp_path)
    mask = np.zeros((40, 60), np.uint8)
    mask[0, :4] = (0, 127, 128, 255)
    write(tmp_path / "masks/a.png", mask)
    found = read_mask(scan(tmp_path), "a.jpg")
    assert found is not None
    assert found[0, :4].tolist() == [False, False, True, True]
    assert found.sum() == 2


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "RGB", "RGBA"])
def test_every_kind_of_mask_file_is_read(tmp_path: Path, mode: str) -> None:
    photograph(tmp_path)
    (tmp_path / "masks").mkdir()
    if mode == "I;16":
        image = Image.fromarray(pattern().astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray((pattern() > 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 250, 20, 20])
    else:
        image = Image.fromarray(pattern()).convert(mode)
    image.save(tmp_path / "masks/a.png")
    np.testing.assert_array_equal(read_mask(scan(tmp_path), "a.jpg"), pattern() > 0)


def test_mask_of_zeros_and_ones_is_refused(tmp_path: Path) -> None:
    photograph(tmp_path)
    path = write(tmp_path / "masks/a.png", pattern() // 255)
    with pytest.raises(ImageError) as caught:
        read_mask(scan(tmp_path), "a.jpg")
    assert str(caught.value) == (
        f"the mask {path} of {tmp_path / 'images/a.jpg'}: its values are 0 and 1 but"
        " expected 0 and 255; write it anew"
    )


def test_black_mask_ignores_all(tmp_path: Path) -> None:
    photograph(tmp_path)
    write(tmp_path / "masks/a.png", np.zeros((40, 60), np.uint8))
    found = read_mask(scan(tmp_path), "a.jpg")
    assert found is not None
    assert not found.any()


def test_transparency_of_a_mask_must_agree_with_its_colours(tmp_path: Path) -> None:
    photograph(tmp_path)
    white = np.full((40, 60), 255, np.uint8)
    write(tmp_path / "masks/a.png", np.dstack((white, white, white, pattern())))
    with pytest.raises(ImageError, match="contradicts its colours"):
        read_mask(scan(tmp_path), "a.jpg")
    write(tmp_path / "masks/a.png", np.dstack([pattern()] * 4))
    np.testing.assert_array_equal(read_mask(scan(tmp_path), "a.jpg"), pattern() > 0)


def test_unreadable_mask_is_named(tmp_path: Path) -> None:
    photograph(tmp_path)
    path = write(tmp_path / "masks/a.png", pattern())
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"masks/a\.png of .*a\.jpg: .*truncated"):
        read_mask(scan(tmp_path), "a.jpg")


# --------------------------------------------------------------------- turns and sizes
@pytest.mark.parametrize("turn", range(1, 9))
def test_mask_painted_upright_is_turned_as_stored(tmp_path: Path, turn: int) -> None:
    photograph(tmp_path, turn=turn)
    write(tmp_path / "masks/a.png", upright_pixels(pattern(), turn))
    np.testing.assert_array_equal(read_mask(scan(tmp_path), "a.jpg"), pattern() > 0)


@pytest.mark.parametrize("turn", [1, 5, 6, 7, 8])
def test_mask_of_the_stored_aspect_is_as_stored(tmp_path: Path, turn: int) -> None:
    photograph(tmp_path, turn=turn)
    write(tmp_path / "masks/a.png", pattern())
    np.testing.assert_array_equal(read_mask(scan(tmp_path), "a.jpg"), pattern() > 0)


@pytest.mark.parametrize("own_turn", [3, 6, 8])
def test_mask_with_its_own_turn_is_of_the_upright_image(
    tmp_path: Path, own_turn: int
) -> None:
    photograph(tmp_path, turn=6)
    painted = stored_pixels(upright_pixels(pattern(), 6), own_turn)
    write(tmp_path / "masks/a.png", painted, own_turn)
    np.testing.assert_array_equal(read_mask(scan(tmp_path), "a.jpg"), pattern() > 0)


def test_square_mask_of_a_turned_image_is_upright_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photograph(tmp_path, size=(40, 40), turn=6)
    write(tmp_path / "masks/a.png", upright_pixels(pattern(40, 40), 6))
    images = scan(tmp_path)
    np.testing.assert_array_equal(read_mask(images, "a.jpg"), pattern(40, 40) > 0)
    check_masks(images)
    assert "1 masks are taken as painted on the upright photograph" in caplog.text


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_mask_of_another_size_is_resized(tmp_path: Path, factor: float) -> None:
    photograph(tmp_path, turn=6)
    small = np.zeros((60, 40), np.uint8)
    small[:30, :20] = 255
    size = (round(40 * factor), round(60 * factor))
    resized = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.NEAREST))
    write(tmp_path / "masks/a.png", resized)
    found = read_mask(scan(tmp_path), "a.jpg")
    np.testing.assert_array_equal(found, stored_pixels(small, 6) > 0)


@pytest.mark.parametrize("divisor", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("rounded", [np.floor, np.round, np.ceil])
def test_rounding_of_a_reduced_mask_is_allowed(
    tmp_path: Path, divisor: int, rounded: np.ufunc
) -> None:
    photograph(tmp_path, size=(1601, 1067))
    width, height = rounded(np.array((1601, 1067)) / divisor).astype(int)
    write(tmp_path / "masks/a.png", np.full((height, width), 255, np.uint8))
    found = read_mask(scan(tmp_path), "a.jpg")
    assert found is not None
    assert found.shape == (1067, 1601)


def test_mask_of_another_aspect_is_refused(tmp_path: Path) -> None:
    photograph(tmp_path, turn=6)
    path = write(tmp_path / "masks/a.png", pattern(50, 40))
    with pytest.raises(ImageError) as caught:
        read_mask(scan(tmp_path), "a.jpg")
    assert str(caught.value) == (
        f"the mask {path} of {tmp_path / 'images/a.jpg'}: it is 50 x 40 pixels but the"
        " image 60 x 40 (40 x 60 upright); expected the same aspect. Paint it on the"
        " photograph as it is, uncropped."
    )


@pytest.mark.shared
def test_real_photographs_of_all_orientations_share_one_upright_mask(
    shared: Path, tmp_path: Path
) -> None:
    root = shared / "data/scenes/exif-orientation/images"
    names = [f"Landscape_{k}.jpg" for k in range(9)]
    (tmp_path / "images").mkdir()
    painted = pattern(600, 400)
    for name in names:
        (tmp_path / "images" / name).symlink_to(root / name)
        write(tmp_path / "masks" / f"{name}.png", painted)
    images = scan(tmp_path)
    for name in names:
        info, mask = images.infos[name], read_mask(images, name)
        assert mask is not None
        assert mask.shape == info.size[::-1]
        upright = upright_pixels(mask.view(np.uint8), info.orientation)
        sampled = upright[1::3, 1::3]  # the photographs are three times as large
        np.testing.assert_array_equal(sampled > 0, painted > 0)


# -------------------------------------------------------------------------- keypoints
def test_keypoints_of_unused_pixels_are_dropped_with_all_columns() -> None:
    mask = np.ones((4, 6), np.bool_)
    mask[2, 3] = False
    inside = [(3.0, 2.0), (3.5, 2.5), (3.99, 2.99)]
    outside = [(2.99, 2.5), (4.0, 2.5), (3.5, 1.99), (3.5, 3.0)]
    kept = drop_masked(features(inside + outside, (6, 4)), mask)
    rows = np.arange(3, 7, dtype=np.float32)
    np.testing.assert_array_equal(kept.xy, np.array(outside, np.float32))
    np.testing.assert_array_equal(kept.scores, rows)
    np.testing.assert_array_equal(kept.descriptors, np.stack((rows, -rows), 1))
    np.testing.assert_array_equal(kept.scale, rows + 10)
    np.testing.assert_array_equal(kept.angle, rows / np.float32(10))
    assert (kept.image_size, kept.orientation) == ((6, 4), 6)


def test_keypoints_on_the_border_count_to_the_last_pixel() -> None:
    mask = np.zeros((4, 6), np.bool_)
    mask[3, 5] = mask[0, 0] = True
    xy = [(6.0, 4.0), (-0.4, -0.4), (6.0, 0.0)]
    assert drop_masked(features(xy, (6, 4)), mask).scores.tolist() == [0, 1]


def test_no_keypoints_stay_none() -> None:
    assert len(drop_masked(features([], (6, 4)), np.ones((4, 6), np.bool_))) == 0


def test_mask_of_another_image_is_refused_for_keypoints() -> None:
    with pytest.raises(ValueError, match=r"\(4, 6\) but expected \(6, 4\)"):
        drop_masked(features([(1, 1)], (6, 4)), np.ones((6, 4), np.bool_))


# ----------------------------------------------------------------------------- checks
def test_masks_of_no_image_and_images_without_mask_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photograph(tmp_path, name)
    write(tmp_path / "masks/a.jpg.png", pattern())
    write(tmp_path / "masks/bb.png", pattern())
    write(tmp_path / "masks/.hidden.png", pattern())
    with caplog.at_level(logging.WARNING):
        check_masks(scan(tmp_path))
    masks = tmp_path / "masks"
    assert caplog.messages == [
        f"files in {masks} that belong to no image: 1, such as bb.png; check their"
        " names",
        f"2 of 3 images have no mask in {masks} and are used whole, such as b.jpg,"
        " c.jpg",
    ]


def test_masks_of_photographs_that_are_left_out_are_no_mistake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photograph(tmp_path)
    photograph(tmp_path, "line\nbreak.jpg")
    write(tmp_path / "masks/a.png", pattern())
    write(tmp_path / "masks/line\nbreak.jpg.png", pattern())
    check_masks(scan(tmp_path))
    assert not caplog.messages
    write(tmp_path / "masks/tab\tnowhere.png", pattern())
    check_masks(scan(tmp_path))
    assert "such as tab\\tnowhere.png; check" in caplog.text


def test_complete_masks_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photograph(tmp_path)
    write(tmp_path / "masks/a.png", pattern())
    check_masks(scan(tmp_path))
    assert not caplog.messages


def test_masks_of_no_image_at_all_are_an_error(tmp_path: Path) -> None:
    photograph(tmp_path)
    write(tmp_path / "masks/b.png", pattern())
    images = scan(tmp_path)
    with pytest.raises(ImageError) as caught:
        check_masks(images)
    assert str(caught.value) == (
        f"no file in {tmp_path / 'masks'} is the mask of an image in"
        f" {tmp_path / 'images'}. Expected, for example, a.jpg.png there; sub-folders"
        " count."
    )
    assert not has_masks(images)


def test_name_too_long_for_a_mask_has_none(tmp_path: Path) -> None:
    name = "n" * 250 + ".jpg"  # 254 bytes; file systems stop at 255
    photograph(tmp_path, name)
    mask = np.zeros((40, 60), np.uint8)
    (tmp_path / "masks").mkdir()
    assert read_mask(scan(tmp_path), name) is None
    write(tmp_path / "masks" / ("n" * 250 + ".png"), mask)
    found = read_mask(scan(tmp_path), name)
    assert found is not None
    assert not found.any()
