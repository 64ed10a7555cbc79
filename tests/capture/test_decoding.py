"""Pixels of damaged files, deep files and files with alpha, in every format."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sfmprep.capture import batches
from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_file import decode, read_pixels
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import ImageError
from tests.support.pictures import Pixels, picture, write

# 8 x 8, of 12 bits, by libjpeg-turbo
JPEG_12_BITS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdAS"
    "FxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/wQALDAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAA"
    "AAB//EABsQAAAHAQAAAAAAAAAAAAAAAAAHCiczRFHh/9oACAEBAAA/ADAnEk0DfZU4P//Z"
)


def reason_of(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        decode(path)
    return str(caught.value)


def detailed(width: int = 120, height: int = 80) -> Pixels:
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3), np.uint8)
    return picture(width, height) // 2 + noise


def write_heif(path: Path, pixels: Pixels) -> Path:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif writes it")
    heif.from_pillow(Image.fromarray(pixels)).save(path, quality=90)
    return path


# ---------------------------------------------------------------------------- damage
JPEG_KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 20},
    "full-colour": {"subsampling": "4:4:4", "optimize": True},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_jpeg_that_lost_data_but_has_its_end_is_damaged(
    tmp_path: Path, kind: str
) -> None:
    """OpenCV and Pillow return a picture with a grey half, without a word."""
    path = write(tmp_path / "a.jpg", detailed(), **JPEG_KINDS[kind])
    whole = path.read_bytes()
    half = len(whole) // 2
    for damaged in (
        whole[:half] + whole[-2:],
        whole[:half] + bytes(len(whole) - half - 2) + whole[-2:],
        whole[:half] + whole[half + len(whole) // 5 :],
    ):
        path.write_bytes(damaged)
        assert cv2.imread(str(path)) is not None
        reason = reason_of(path)
        assert reason.startswith("damaged JPEG (Corrupt JPEG data: ")
        assert reason.endswith("); copy the file again")


def test_reason_of_a_damaged_jpeg(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", detailed())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[-2:])
    with pytest.raises(ImageError) as caught:
        read_pixels(path)
    assert str(caught.value) == (
        f"{path}: damaged JPEG (Corrupt JPEG data: premature end of data segment);"
        " copy the file again"
    )


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("filling", [b"\0", b"\xff\0\x12", b"\0" * 40])
def test_what_fills_a_jpeg_before_its_end_is_no_damage(
    tmp_path: Path, kind: str, filling: bytes
) -> None:
    path = write(tmp_path / "a.jpg", detailed(), **JPEG_KINDS[kind])
    whole = path.read_bytes()
    pixels = read_pixels(path)
    path.write_bytes(whole[:-2] + filling + whole[-2:])
    assert (read_pixels(path) == pixels).all()


def test_harmless_remarks_on_a_jpeg_are_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", detailed())
    pixels = read_pixels(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"JFIF\0\x01", b"JFIF\0\x07"))  # no known revision
    assert (read_pixels(path) == pixels).all()


@pytest.mark.parametrize("options", [*JPEG_KINDS.values(), {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_pixels_are_those_of_opencv(
    tmp_path: Path, mode: str, options: dict[str, object]
) -> None:
    if mode != "RGB":
        options = {k: v for k, v in options.items() if k != "subsampling"}
    path = tmp_path / "a.jpg"
    Image.fromarray(detailed()).convert(mode).save(path, **options)
    expected = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert (read_pixels(path) == expected).all()


def test_jpeg_of_12_bits_is_called_so(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(JPEG_12_BITS)
    assert ImageSet.scan(tmp_path).unreadable == {
        "b.jpg": "a JPEG of 12 bits a channel, which cannot be read; save it anew with"
        " 8 bits, or as a PNG or TIFF with 16"
    }


def test_jpeg_of_a_kind_that_is_not_decoded_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes().replace(b"\xff\xc0", b"\xff\xc3"))  # lossless
    assert reason_of(path) == (
        "damaged JPEG, or a variant that OpenCV cannot decode; save it anew as an"
        " ordinary JPEG or PNG"
    )


def test_broken_data_in_a_compressed_tiff_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", detailed(300, 200), compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    assert cv2.imread(str(path)) is not None  # as if nothing was wrong
    assert reason_of(path) == (
        "damaged or truncated TIFF (decoder error -2); copy the file again"
    )


def test_broken_data_in_a_png_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", detailed())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert reason_of(path) == (
        "damaged PNG, or a variant that OpenCV cannot decode; save it anew as an"
        " ordinary JPEG or PNG"
    )


FORMATS = ("jpg", "png", "tif", "bmp", "webp", "heic", "avif", "jp2")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_file_of_every_format_is_no_photograph(
    tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_heif(path, detailed()) if suffix == "heic" else write(path, detailed())
    assert decode(path).pixels.shape == (80, 120, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "damaged" in reason_of(path) or "truncated" in reason_of(path)


@pytest.mark.parametrize("suffix", ["webp", "heic", "avif", "jp2"])
def test_file_whose_end_was_never_written_is_left_out(
    tmp_path: Path, suffix: str
) -> None:
    write(tmp_path / "whole.jpg")
    path = tmp_path / f"a.{suffix}"
    write_heif(path, detailed()) if suffix == "heic" else write(path, detailed())
    data = path.read_bytes()
    path.write_bytes(data[:-1100] + bytes(1100))
    kind = {"webp": "WEBP", "heic": "HEIF", "avif": "AVIF", "jp2": "JPEG2000"}[suffix]
    assert ImageSet.scan(tmp_path).unreadable == {
        path.name: f"unfinished {kind}, its end is all zeros; copy the file again"
    }


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.tif", {"compression": "tiff_adobe_deflate"})],
)
def test_every_wrong_byte_is_found_where_the_format_has_checksums(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    """libtiff alone misses one in six: the checksum comes behind the last row."""
    path = write(tmp_path / name, detailed(), **options)
    data = path.read_bytes()
    places = range(len(data) // 10, len(data) * 9 // 10, len(data) // 40)
    for place in places:
        path.write_bytes(flipped(data, place))
        assert reason_of(path).startswith(("damaged PNG", "damaged TIFF", "damaged or"))


def test_checksum_of_a_strip_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", detailed(), compression="tiff_adobe_deflate")
    with Image.open(path) as tiff:
        end = tiff.tag_v2[273][0] + tiff.tag_v2[279][0]
    path.write_bytes(flipped(path.read_bytes(), end - 1))
    assert reason_of(path) == (
        "damaged TIFF (a strip has not its checksum); copy the file again"
    )


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_wrong_byte_in_a_jpeg_is_found_or_leaves_a_picture(
    tmp_path: Path, kind: str
) -> None:
    """Nothing but the code itself tells of it, so some pass."""
    path = write(tmp_path / "a.jpg", detailed(), **JPEG_KINDS[kind])
    data = path.read_bytes()
    found = 0
    for place in range(len(data) // 3, len(data) - 20, len(data) // 60):
        path.write_bytes(flipped(data, place))
        try:
            assert decode(path).pixels.shape == (80, 120, 3)
        except ImageError as error:
            found += 1
            assert str(error).startswith("damaged JPEG")
    assert found > 0


# --------------------------------------------------------------- kept all the same
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((f"{kind}.jpg", options) for kind, options in JPEG_KINDS.items()),
        *(("a.png", {}), ("a.tif", {}), ("a.bmp", {})),
        ("deflate.tif", {"compression": "tiff_adobe_deflate"}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
    ],
)
def test_half_a_file_is_half_a_picture_on_request(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    path = write(tmp_path / name, detailed(320, 240), **options)
    whole = decode(path).pixels.astype(int)
    data = path.read_bytes()
    if path.suffix == ".tif":  # its directory lies at the end: lose what is before
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
        if name == "a.tif":  # nothing tells of it
            assert decode(path).damage is None
            return
    else:
        path.write_bytes(data[: int(len(data) * 0.6)])
    reason = reason_of(path)
    kept = decode(path, keep_damaged=True)
    assert kept.damage == reason
    assert kept.pixels.shape == whole.shape
    kept_rows = slice(180, None) if path.suffix == ".bmp" else slice(60)
    difference = np.abs(kept.pixels - whole)
    assert difference[kept_rows].mean() < 15
    assert difference.max() > 40


@pytest.mark.parametrize("suffix", ["webp", "heic", "avif"])
def test_what_gives_nothing_is_left_out_also_on_request(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_heif(path, detailed()) if suffix == "heic" else write(path, detailed())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError):
        decode(path, keep_damaged=True)


def test_damaged_photographs_are_used_on_request_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.jpg", detailed())
    data = write(tmp_path / "b.jpg", picture(120, 80)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) // 2])
    damage = "truncated JPEG, it has no end marker; copy the file again"
    assert ImageSet.scan(tmp_path).unreadable == {"b.jpg": damage}
    images = ImageSet.scan(tmp_path, keep_damaged=True)
    assert images.names == ("a.jpg", "b.jpg")
    assert [images.infos[name].damage for name in images.names] == [None, damage]
    loaded = list(load_batches(images, images.names, max_size=None))
    assert len(loaded) == 2
    assert images.read_pixels("b.jpg").shape == (80, 120, 3)
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 2 images in {tmp_path} are damaged and kept all the same (keep_damaged),"
        f" such as b.jpg: {damage}"
    ]


# ------------------------------------------------------------------ formats and alpha
def test_mpo_is_its_first_picture(tmp_path: Path) -> None:
    first, second = (Image.fromarray(picture(seed=k)) for k in range(2))
    first.save(
        *(tmp_path / "a.mpo",),
        format="MPO",
        save_all=True,
        append_images=[second],
        quality=95,
    )
    difference = read_pixels(tmp_path / "a.mpo").astype(int) - picture(seed=0)
    assert np.abs(difference).mean() < 3


def test_cmyk_jpeg_has_the_colours_of_its_picture(tmp_path: Path) -> None:
    colours = Image.fromarray(picture())
    colours.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    difference = read_pixels(tmp_path / "a.jpg").astype(int) - picture()
    assert np.abs(difference).mean() < 3


def test_avif_and_jpeg_2000_are_read(tmp_path: Path) -> None:
    for name in ("a.avif", "b.jp2"):
        options = {"quality": 100} if name == "a.avif" else {}
        path = write(tmp_path / name, **options)
        difference = read_pixels(path).astype(int) - picture()
        assert np.abs(difference).mean() < 2
    assert ImageSet.scan(tmp_path).names == ("a.avif", "b.jp2")


def test_avif_is_as_stored_and_says_its_turn(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x112] = 6
    write(tmp_path / "a.avif", exif=tags)
    info = ImageSet.scan(tmp_path).infos["a.avif"]
    assert (info.size, info.orientation) == ((60, 40), 6)
    assert read_pixels(tmp_path / "a.avif").shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "mpo"])
def test_other_names_of_jpeg_are_read(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}", format="JPEG")
    assert ImageSet.scan(tmp_path).names == (f"a.{suffix}",)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "lzw.tif", "a.webp", "a.avif"])
def test_alpha_darkens_no_colours(tmp_path: Path, name: str) -> None:
    alpha = np.full((40, 60), 128, np.uint8)
    options: dict[str, object] = {
        "lzw.tif": {"compression": "tiff_lzw"},
        "a.webp": {"lossless": True},
        "a.avif": {"quality": 100},
    }.get(name, {})
    path = write(tmp_path / name, np.dstack([picture(), alpha]), **options)
    allowed = 12 if name == "a.avif" else 0
    assert np.abs(read_pixels(path).astype(int) - picture()).max() <= allowed


# ---------------------------------------------------------------------------- levels
def write_deep(path: Path, values: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), values)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_12_bits_in_16_use_all_of_8(tmp_path: Path, suffix: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (40, 60, channels), np.uint16)
    deep[0, 0], deep[0, 1] = 0, 4095
    pixels, levels, _ = decode(write_deep(tmp_path / f"a.{suffix}", deep))
    assert levels == (0, 4095)
    expected = np.broadcast_to(deep[..., ::-1] >> 4, (40, 60, 3))
    assert (pixels == expected).all()


def test_thermal_picture_is_stretched_in_steps(tmp_path: Path) -> None:
    """So that another of 29,450 to 30,650 has the same grey for a temperature."""
    values = np.linspace(29_500, 30_700, 2400).reshape(40, 60).astype(np.uint16)
    pixels, levels, _ = decode(write_deep(tmp_path / "a.png", values))
    assert levels == (29_500, 30_700)
    start, width = 29_184, 2048  # the multiple of 512 below
    assert (pixels[..., 0] == (values.astype(int) - start) * 256 // width).all()


def test_picture_of_many_levels_is_not_stretched(tmp_path: Path) -> None:
    values = np.linspace(1000, 1000 + (1 << 14), 2400).reshape(40, 60)
    deep = values.astype(np.uint16)
    pixels, levels, _ = decode(write_deep(tmp_path / "a.png", deep))
    assert levels is None
    assert (pixels[..., 0] == deep >> 8).all()


@pytest.mark.parametrize(("low", "high", "stretched"), [(0, 1, False), (20, 35, True)])
def test_tiff_of_floats_is_read(
    tmp_path: Path, low: float, high: float, stretched: bool
) -> None:
    values = np.linspace(low, high, 2400, dtype=np.float32).reshape(40, 60)
    pixels, levels, _ = decode(write(tmp_path / "a.tif", values))
    assert levels == ((low, high) if stretched else None)
    start, width = (20, 16) if stretched else (0, 1)
    expected = np.minimum((values - start) * (256 / width), 255).astype(np.uint8)
    assert (pixels[..., 0] == expected).all()


def test_stretch_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        values = np.linspace(100, 900, 2400).reshape(40, 60).astype(np.uint16)
        write_deep(tmp_path / name, values)
    images = ImageSet.scan(tmp_path)
    list(load_batches(images, images.names, max_size=None))
    assert [record.getMessage() for record in caplog.records] == [
        f"2 of 3 images in {tmp_path} use few of the levels that they could, such as"
        " b.png from 100 to 900; each is stretched to the range that it uses"
    ]


# --------------------------------------------------------------------------- batches
def test_batches_and_reading_ahead_are_bounded_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(12):
        write(tmp_path / f"{k:02}.png", picture(20, 10, seed=k))
    one = 20 * 10 * 3 * 4
    monkeypatch.setattr(batches, "_BATCH_BYTES", 3 * one + 1)
    monkeypatch.setattr(batches, "_AHEAD_BYTES", 2 * one)
    images = ImageSet.scan(tmp_path)
    started: list[str] = []

    def noted(path: Path, **options: bool):
        started.append(path.name)
        return decode(path, **options)

    monkeypatch.setattr(batches, "decode", noted)
    loaded = load_batches(
        images, images.names, max_size=None, batch_size=8, num_workers=2
    )
    names, batch = next(loaded)
    assert names == ("00.png", "01.png", "02.png")
    assert batch.pixels.shape == (3, 3, 10, 20)
    assert len(started) <= 3 + 2
    assert [len(names) for names, _ in loaded] == [3, 3, 3]


def test_image_beyond_the_bounds_comes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_BATCH_BYTES", 1)
    monkeypatch.setattr(batches, "_AHEAD_BYTES", 1)
    for k in range(3):
        write(tmp_path / f"{k}.png")
    images = ImageSet.scan(tmp_path)
    loaded = load_batches(images, images.names, max_size=None, batch_size=8)
    assert [names for names, _ in loaded] == [("0.png",), ("1.png",), ("2.png",)]


def test_images_that_wait_are_bounded_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a size of its own, so that no batch ever fills."""
    for k in range(6):
        write(tmp_path / f"{k}.png", picture(20 + k, 10))
    monkeypatch.setattr(batches, "_BATCH_BYTES", 3 * 20 * 10 * 3 * 4)
    images = ImageSet.scan(tmp_path)
    loaded = load_batches(
        images, images.names, max_size=None, batch_size=50, num_workers=1
    )
    assert next(loaded)[0] == ("0.png",)
    assert [names for names, _ in loaded] == [(f"{k}.png",) for k in range(1, 6)]
