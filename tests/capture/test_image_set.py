"""Scanning folders, reading pixels and batching, on files written here."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pi_heif
import pytest
from PIL import Image, ImageOps
from PIL.ExifTags import GPS
from PIL.PngImagePlugin import PngInfo

from sfmprep.capture import batches as batching
from sfmprep.capture import image_file
from sfmprep.capture.batches import fit_size, load_batches
from sfmprep.capture.image_file import ImageInfo, read_info, read_pixels
from sfmprep.capture.image_set import ImageSet
from sfmprep.coords import upright_matrix, upright_pixels, upright_size
from sfmprep.errors import ConfigError, ImageError
from tests.support.pictures import Pixels, picture, write

ENDINGS = ".jpg .jpeg .jpe .jfif .mpo .png .tif .tiff .bmp .webp .heic .heif .avif .jp2"


def exif(
    *,
    orientation: object = None,
    camera: tuple[str, str] | None = None,
    lens: dict[int, object] | None = None,
) -> Image.Exif:
    tags = Image.Exif()
    if orientation is not None:
        tags[0x112] = orientation
    if camera is not None:
        tags[0x10F], tags[0x110] = camera
    if lens is not None:
        tags[0x8769] = lens
    return tags


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    return str(caught.value)


def image_set(root: Path, **infos: ImageInfo) -> ImageSet:
    return ImageSet(root, tuple(infos), infos, {})


# ---------------------------------------------------------------------------- headers
def test_a_damaged_avif_is_refused_whatever_its_reader_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    Image.new("RGB", (64, 48)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"av1C", b"xv1C"))
    with pytest.raises(ImageError) as caught:
        read_info(path)
    assert str(caught.value) == (
        "damaged or truncated AVIF header; copy the file again"
    )


def test_header_says_size_and_camera(tmp_path: Path) -> None:
    lens = {0x920A: 4.25, 0xA405: 26, 0xA434: "iPhone 12 back camera"}
    tags = exif(orientation=6, camera=("Apple\0", " iPhone 12 "), lens=lens)
    path = write(tmp_path / "a.jpg", exif=tags)
    assert ImageSet.scan(tmp_path).infos["a.jpg"] == ImageInfo(
        size=(60, 40),
        orientation=6,
        num_bytes=path.stat().st_size,
        make="Apple",
        model="iPhone 12",
        lens_model="iPhone 12 back camera",
        focal_length_mm=4.25,
        focal_length_35mm=26.0,
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_every_format_gives_its_exif(tmp_path: Path, suffix: str) -> None:
    lens = {0x920A: 35.0} if suffix != "tif" else None  # Pillow writes none to TIFF
    tags = exif(orientation=8, camera=("Make", "Model"), lens=lens)
    write(tmp_path / f"a.{suffix}", exif=tags)
    info = ImageSet.scan(tmp_path).infos[f"a.{suffix}"]
    assert (info.size, info.orientation) == ((60, 40), 8)
    assert (info.make, info.model) == ("Make", "Model")
    assert info.focal_length_mm == (35.0 if lens else None)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_invalid_orientation_counts_as_stored(tmp_path: Path, orientation: int) -> None:
    write(tmp_path / "a.jpg", exif=exif(orientation=orientation))
    assert ImageSet.scan(tmp_path).infos["a.jpg"].orientation == 1


def test_focal_length_of_zero_is_none(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", exif=exif(lens={0x920A: 0.0, 0xA405: 0}))
    info = ImageSet.scan(tmp_path).infos["a.jpg"]
    assert (info.focal_length_mm, info.focal_length_35mm) == (None, None)


# --------------------------------------------------------------------- GPS and gravity
def gps_exif(**changes: object) -> Image.Exif:
    """EXIF of 33 degrees 51' 31.32" S, 151 degrees 12' 51" E, 12.5 m."""
    tags = {
        "GPSLatitudeRef": "S",
        "GPSLatitude": (33.0, 51.0, 31.32),
        "GPSLongitudeRef": "E",
        "GPSLongitude": (151.0, 12.0, 51.0),
        "GPSAltitudeRef": b"\0",
        "GPSAltitude": 12.5,
        "GPSHPositioningError": 4.75,
    } | changes
    found = Image.Exif()
    found[0x8825] = {GPS[k].value: v for k, v in tags.items() if v is not None}
    return found


def scanned(root: Path, name: str = "a.jpg") -> ImageInfo:
    return ImageSet.scan(root).infos[name]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_gps_position_is_read(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}", exif=gps_exif())
    info = scanned(tmp_path, f"a.{suffix}")
    expected = (-33 - 51 / 60 - 31.32 / 3600, 151 + 12 / 60 + 51 / 3600, 12.5)
    assert info.gps == pytest.approx(expected, abs=1e-9)
    assert info.gps_accuracy_m == 4.75


@pytest.mark.parametrize(("reference", "sign"), [(b"\0", 1), (b"\1", -1), (b"\3", -1)])
def test_altitude_below_the_sea_is_negative(
    tmp_path: Path, reference: bytes, sign: int
) -> None:
    write(tmp_path / "a.jpg", exif=gps_exif(GPSAltitudeRef=reference))
    gps = scanned(tmp_path).gps
    assert gps is not None
    assert gps[2] == 12.5 * sign


def test_position_without_altitude_or_accuracy_is_one(tmp_path: Path) -> None:
    tags = gps_exif(GPSAltitude=None, GPSHPositioningError=None)
    write(tmp_path / "a.jpg", exif=tags)
    info = scanned(tmp_path)
    assert info.gps is not None
    assert (info.gps[2], info.gps_accuracy_m) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"GPSLatitude": (95.0, 0.0, 0.0)},
        {"GPSLongitude": (181.0, 0.0, 0.0)},
        {"GPSLatitude": (0.0, 0.0, 0.0), "GPSLongitude": (0.0, 0.0, 0.0)},
        {"GPSLatitude": None},
        {"GPSLatitudeRef": None},
        {"GPSLatitudeRef": "E"},
    ],
)
def test_invalid_position_is_none(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path / "a.jpg", exif=gps_exif(**changes))
    assert scanned(tmp_path).gps is None


def apple_note(x: float, y: float, z: float, *, count: int = 3) -> bytes:
    """An iPhone's maker note that holds a version and the acceleration, in g."""
    number = struct.pack(">HHLl", 1, 9, 1, 14)
    vector = struct.pack(">HHLL", 8, 10, count, 14 + 2 + 2 * 12 + 4)
    values = [v for part in (x, y, z) for v in (round(part * 10**6), 10**6)]
    directory = struct.pack(">H", 2) + number + vector + bytes(4)
    return b"Apple iOS\0\0\1MM" + directory + struct.pack(">6l", *values)


def iphone(note: bytes, lens: str = "iPhone 12 back camera", turn: int = 1) -> bytes:
    tags = exif(orientation=turn, camera=("Apple", "iPhone 12"))
    tags[0x8769] = {0x927C: note, 0xA434: lens}
    return tags.tobytes()


@pytest.mark.parametrize(
    ("held", "orientation", "gravity"),
    [
        ((-1, 0, 0), 1, (0, 1, 0)),  # home button to the right
        ((1, 0, 0), 3, (0, -1, 0)),
        ((0, -1, 0), 6, (1, 0, 0)),  # upright
        ((0, 1, 0), 8, (-1, 0, 0)),
        ((0, 0, -1), 1, (0, 0, 1)),  # the screen faces the sky, the lens the floor
        ((0.0, -0.8, -0.6), 6, (0.8, 0, 0.6)),
    ],
)
def test_acceleration_of_a_phone_is_gravity_of_the_stored_pixels(
    tmp_path: Path,
    held: tuple[float, float, float],
    orientation: int,
    gravity: tuple[float, float, float],
) -> None:
    write(tmp_path / "a.jpg", exif=iphone(apple_note(*held), turn=orientation))
    info = scanned(tmp_path)
    assert info.gravity == pytest.approx(gravity, abs=1e-6)
    shown = upright_matrix(orientation) @ np.array(gravity[:2])
    assert shown[1] >= 0  # towards the lower edge of the image as it is shown


def test_gravity_of_heic_is_of_the_pixels_that_its_reader_turned(
    tmp_path: Path,
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = pillow_heif.from_pillow(Image.fromarray(picture()))
    image.save(tmp_path / "a.heic", exif=iphone(apple_note(0, -1, 0), turn=6))
    info = scanned(tmp_path, "a.heic")
    assert info.orientation == 1
    assert info.gravity == pytest.approx((0, 1, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("note", "lens"),
    [
        (apple_note(-1, 0, 0), "iPhone 12 front camera"),  # mirrored, other axes
        (apple_note(-1.6, 0, 0), "back"),  # shaken
        (apple_note(-1, 0, 0, count=2), "back"),
        (apple_note(-1, 0, 0)[:-20], "back"),
        (apple_note(-1, 0, 0)[:20], "back"),
        (b"Apple iOS\0\0\1MM\xff\xff", "back"),
        (b"Apple iOS\0", "back"),
        (b"Nikon\0" + apple_note(-1, 0, 0), "back"),
    ],
)
def test_other_maker_notes_tell_no_gravity(
    tmp_path: Path, note: bytes, lens: str
) -> None:
    write(tmp_path / "a.jpg", exif=iphone(note, lens))
    info = scanned(tmp_path)
    assert info.gravity is None
    assert info.lens_model == lens


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
    ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
    ' xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/"'
    ' xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"{attributes}>{elements}'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
ATTRIBUTES = (
    ' drone-dji:GimbalRollDegree="{roll}" drone-dji:GimbalPitchDegree="{pitch}"'
)
ELEMENTS = (
    "<drone-dji:GimbalPitchDegree>{pitch}</drone-dji:GimbalPitchDegree>"
    "<drone-dji:GimbalRollDegree>{roll}</drone-dji:GimbalRollDegree>"
)
SPHERE = ' GPano:PosePitchDegrees="{pitch}" GPano:PoseRollDegrees="{roll}"'


@pytest.mark.parametrize(
    ("pitch", "roll", "gravity"),
    [
        ("+0.00", "+0.00", (0, 1, 0)),
        ("-90.00", "+0.00", (0, 0, 1)),  # straight down
        ("-30.0", "0", (0, 0.8660254, 0.5)),
        ("+30.0", "0", (0, 0.8660254, -0.5)),
        ("0", "30", (0.5, 0.8660254, 0)),  # the right side is down
    ],
)
@pytest.mark.parametrize("form", [ATTRIBUTES, ELEMENTS, SPHERE])
def test_angles_in_xmp_are_gravity(
    tmp_path: Path, form: str, pitch: str, roll: str, gravity: tuple[float, ...]
) -> None:
    text = form.format(pitch=pitch, roll=roll)
    parts = ("", text) if form is ELEMENTS else (text, "")
    xmp = XMP.format(attributes=parts[0], elements=parts[1]).encode()
    write(tmp_path / "a.jpg", xmp=xmp)
    assert scanned(tmp_path).gravity == pytest.approx(gravity, abs=1e-6)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_xmp_of_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    text = ATTRIBUTES.format(pitch=-90, roll=0)
    xmp = XMP.format(attributes=text, elements="").encode()
    options: dict[str, object] = {"xmp": xmp}
    if suffix == "png":
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": chunks}
    elif suffix == "tif":
        options = {"tiffinfo": {700: xmp}}
    write(tmp_path / f"a.{suffix}", **options)
    gravity = scanned(tmp_path, f"a.{suffix}").gravity
    assert gravity == pytest.approx((0, 0, 1), abs=1e-6)


@pytest.mark.parametrize("value", ["", "north", "+-.", "1e999", "--3"])
def test_angles_that_are_no_numbers_tell_no_gravity(tmp_path: Path, value: str) -> None:
    text = ATTRIBUTES.format(pitch=value, roll=value)
    xmp = XMP.format(attributes=text, elements="").encode()
    write(tmp_path / "a.jpg", xmp=xmp)
    assert scanned(tmp_path).gravity is None


@pytest.mark.filterwarnings("ignore:.*(Tag|EXIF|Truncated)")
def test_damaged_sensors_never_make_a_photograph_unreadable(tmp_path: Path) -> None:
    tags = gps_exif()
    tags[0x8769] = {0x927C: apple_note(-1, 0, 0)}
    whole = tags.tobytes()
    rng = np.random.default_rng(1)
    for k in range(80):
        damaged = bytearray(whole)
        for place in rng.integers(6, len(whole), 1 + k // 4):
            damaged[place] = rng.integers(256)
        write(tmp_path / f"{k}.jpg", exif=bytes(damaged))
    infos = ImageSet.scan(tmp_path).infos.values()
    assert len(infos) == 80
    for info in infos:
        if info.gravity is not None:
            assert np.linalg.norm(info.gravity) == pytest.approx(1)
        if info.gps is not None:
            assert abs(info.gps[0]) <= 90
            assert abs(info.gps[1]) <= 180


@pytest.mark.filterwarnings("ignore:.*(Tag|EXIF|Truncated)")
def test_damaged_exif_never_makes_a_photograph_unreadable(tmp_path: Path) -> None:
    tags = exif(orientation=6, camera=("Make", "Model"), lens={0x920A: 35.0}).tobytes()
    rng = np.random.default_rng(0)
    for k in range(60):
        damaged = bytearray(tags)
        for place in rng.integers(6, len(tags), 1 + k // 4):
            damaged[place] = rng.integers(256)
        write(tmp_path / f"{k}.jpg", exif=bytes(damaged[: len(tags) - k // 2]))
    scanned = ImageSet.scan(tmp_path)
    assert len(scanned) == 60
    assert {info.size for info in scanned.infos.values()} == {(60, 40)}
    assert {info.orientation for info in scanned.infos.values()} <= set(range(1, 9))


def test_scanning_decodes_no_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("jpg", "png", "tif", "webp", "bmp"):
        write(tmp_path / f"a.{suffix}")

    def refuse(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", refuse)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", refuse)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", refuse)
    assert len(ImageSet.scan(tmp_path)) == 5


def test_very_large_images_are_scanned_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    header = b"BM" + np.array([54, 0, 54, 40, 20000, 10000], "<u4").tobytes()
    rest = np.array([1, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "<u2").tobytes()
    (tmp_path / "huge.bmp").write_bytes(header + rest)
    assert ImageSet.scan(tmp_path).infos["huge.bmp"].size == (20000, 10000)
    assert not recwarn.list


def test_importing_images_needs_neither_opencv_nor_pycolmap() -> None:
    code = (
        "import sys, sfmprep.capture.image_set;"
        " print({'cv2', 'pycolmap'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout.decode().strip() == "set()"


# --------------------------------------------------------------------------- scanning
def test_names_are_sorted_posix_paths(tmp_path: Path) -> None:
    names = ["B/1.JPG", "a/1.jpg", "a/b/2.jpeg", "z.PnG", "ä ö.tiff", "ß 1.webp"]
    for name in names:
        image_format = {"G": "JPEG", "g": "JPEG"}.get(name[-1])
        write(tmp_path / name, format="PNG" if name == "z.PnG" else image_format)
    scanned = ImageSet.scan(tmp_path)
    assert scanned.names == tuple(sorted(names))
    assert set(scanned.infos) == set(names)
    assert len(scanned) == 6
    assert all(scanned.path(name).is_file() for name in names)


def test_same_file_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    write(tmp_path / "left" / "0001.jpg")
    write(tmp_path / "right" / "0001.jpg")
    assert ImageSet.scan(tmp_path).names == ("left/0001.jpg", "right/0001.jpg")


def test_names_that_differ_only_in_case_are_two_images(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "A.JPG")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell case apart")
    assert ImageSet.scan(tmp_path).names == ("A.JPG", "a.jpg")


def test_hidden_and_system_files_do_not_count(tmp_path: Path) -> None:
    for name in ("a.jpg", ".b.jpg", ".c/d.jpg", "__MACOSX/a.jpg", "__MACOSX/._a.jpg"):
        write(tmp_path / name)
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "a.gif"):
        (tmp_path / name).write_text("x")
    scanned = ImageSet.scan(tmp_path)
    assert (scanned.names, scanned.unreadable) == (("a.jpg",), {})


def test_links_are_followed_and_no_folder_is_entered_twice(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write(root / "z" / "1.jpg")
    write(elsewhere / "2.jpg")
    (root / "a").symlink_to(root / "z")  # sorted first, but the real name wins
    (root / "z" / "up").symlink_to(root)
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "file.jpg").symlink_to(elsewhere / "2.jpg")
    (root / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "ring.jpg").symlink_to(root / "ring.jpg")
    scanned = ImageSet.scan(root)
    assert scanned.names == ("file.jpg", "linked/2.jpg", "z/1.jpg")
    assert scanned.unreadable == {
        "broken.jpg": "the file cannot be read: No such file or directory",
        "ring.jpg": "the file cannot be read: Too many levels of symbolic links",
    }


def test_masks_inside_the_folder_are_no_images(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "masks" / "a.jpg.png")
    scanned = ImageSet.scan(tmp_path, mask_root=tmp_path / "masks")
    assert scanned.names == ("a.jpg",)
    assert scanned.mask_root == tmp_path / "masks"


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_name_that_is_not_utf8_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    shutil.copy(tmp_path / "a.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    scanned = ImageSet.scan(tmp_path)
    assert scanned.names == ("a.jpg",)
    assert scanned.unreadable == {"caf\\xe9.jpg": "its name is not UTF-8; rename it"}


def test_scan_reports_progress_for_every_file(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"{k}.jpg")
    seen: list[object] = []

    def progress(items, *, desc, total=None):
        seen.append((desc, total))
        for item in items:
            seen.append(item[0])
            yield item

    ImageSet.scan(tmp_path, progress=progress)
    assert seen == [("scan", 3), "0.jpg", "1.jpg", "2.jpg"]


def test_nothing_is_modified(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", exif=exif(orientation=6))
    before = path.read_bytes(), path.stat().st_mtime_ns
    scanned = ImageSet.scan(tmp_path)
    list(load_batches(scanned, scanned.names, max_size=16))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jpg"]


# -------------------------------------------------------------------- damaged files
def noisy_bytes(**options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, **options)
    return buffer.getvalue()


TRUNCATED_JPEG = "truncated JPEG, it has no end marker; copy the file again"


def test_unreadable_files_are_named_with_their_reason(tmp_path: Path) -> None:
    write(tmp_path / "good.jpg")
    jpeg, png = noisy_bytes(format="JPEG"), noisy_bytes(format="PNG")
    contents = {
        "empty.jpg": b"",
        "half.jpg": jpeg[: len(jpeg) // 2],
        "half.png": png[: len(png) // 2],
        "head.jpg": jpeg[:100],
        "head.png": png[:20],
        "head.webp": b"RIFF\x08\0\0\0WEBPVP8 ",
        "text.jpg": b"These are not the pixels you are looking for.\n",
        "zeros.jpg": jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    scanned = ImageSet.scan(tmp_path)
    assert scanned.names == ("good.jpg",)
    assert scanned.unreadable == {
        "empty.jpg": "the file is empty; copy it again",
        "half.jpg": TRUNCATED_JPEG,
        "half.png": "truncated PNG, it has no IEND chunk; copy the file again",
        "head.jpg": "damaged or truncated JPEG header; copy the file again",
        "head.png": "damaged or truncated PNG header; copy the file again",
        "head.webp": "damaged or truncated WEBP header; copy the file again",
        "text.jpg": "its content is none of JPEG, PNG, TIFF, BMP, WebP, HEIC, AVIF,"
        " JPEG 2000",
        "zeros.jpg": TRUNCATED_JPEG,
    }
    for name, reason in scanned.unreadable.items():
        path = tmp_path / name
        assert error_of(lambda path=path: read_pixels(path)) == f"{path}: {reason}"


def test_thumbnails_end_marker_does_not_hide_a_truncation(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(picture(16, 12)).save(thumbnail, "JPEG")
    tags = exif(camera=("Make", "Model")).tobytes() + thumbnail.getvalue()
    jpeg = noisy_bytes(format="JPEG", exif=tags)
    assert jpeg.count(b"\xff\xd9") == 2
    (tmp_path / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "whole.jpg").write_bytes(jpeg)
    scanned = ImageSet.scan(tmp_path)
    assert scanned.names == ("whole.jpg",)
    assert scanned.unreadable == {"half.jpg": TRUNCATED_JPEG}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("num_bytes", [1, 5000, 3 << 20])
def test_trailing_data_is_no_truncation(
    tmp_path: Path, image_format: str, num_bytes: int
) -> None:
    (tmp_path / "motion.jpg").write_bytes(
        noisy_bytes(format=image_format) + b"\0" * num_bytes
    )
    assert ImageSet.scan(tmp_path).names == ("motion.jpg",)


def test_end_marker_across_two_chunks_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_file, "_CHUNK_BYTES", 4)
    monkeypatch.setattr(image_file, "_TAIL_BYTES", 1)
    for start in range(9):
        file = io.BytesIO(b"." * start + b"IEND\xaeB`\x82" + b"." * 7)
        assert image_file._has_after(file, b"IEND\xaeB`\x82")
        file.seek(start + 1)
        assert not image_file._has_after(file, b"IEND\xaeB`\x82")


def test_content_counts_and_not_the_extension(tmp_path: Path) -> None:
    write(tmp_path / "really-png.jpg", format="PNG")
    write(tmp_path / "really-jpeg.heic", format="JPEG")
    assert len(ImageSet.scan(tmp_path)) == 2
    assert (read_pixels(tmp_path / "really-png.jpg") == picture()).all()


def heic_header() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_that_is_a_header_alone_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    (tmp_path / "b.heic").write_bytes(heic_header())
    assert ImageSet.scan(tmp_path).unreadable == {
        "b.heic": "damaged or truncated HEIF header; copy the file again"
    }


@pytest.mark.parametrize("bits", [10, 12])
def test_heic_of_more_bits_is_read(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif writes it")
    monkeypatch.setattr(heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    values = picture(64, 48).astype(np.uint16) * 257
    made = heif.from_bytes("RGB;16", (64, 48), values.tobytes())
    made.save(tmp_path / "a.heic", quality=95)
    opened = pi_heif.open_heif(tmp_path / "a.heic", convert_hdr_to_8bit=False)
    assert opened.info["bit_depth"] == bits
    pixels = read_pixels(tmp_path / "a.heic")
    assert np.abs(pixels.astype(int) - picture(64, 48)).mean() < 4


def test_heic_is_read_upright(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif writes it")
    image = Image.fromarray(picture(64, 48))
    heif.from_pillow(image).save(tmp_path / "a.heic", quality=95)
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:500])
    scanned = ImageSet.scan(tmp_path)
    assert list(scanned.unreadable) in ([], ["cut.heic"])
    info = scanned.infos["a.heic"]
    assert (info.size, info.orientation) == ((64, 48), 1)
    pixels = read_pixels(tmp_path / "a.heic")
    assert np.abs(pixels.astype(int) - picture(64, 48)).mean() < 4
    assert str(tmp_path / "cut.heic") in error_of(
        lambda: read_pixels(tmp_path / "cut.heic")
    )


# -------------------------------------------------------------------------- messages
def test_missing_folder(tmp_path: Path) -> None:
    assert error_of(lambda: ImageSet.scan(tmp_path / "no")) == (
        f"the image folder {tmp_path}/no does not exist. Check the path for typing"
        " errors."
    )


def test_missing_mask_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    call = lambda: ImageSet.scan(tmp_path, mask_root=tmp_path / "no")  # noqa: E731
    assert error_of(call) == (
        f"the mask folder {tmp_path}/no does not exist. Check the path for typing"
        " errors."
    )


def test_masks_and_images_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    assert error_of(lambda: ImageSet.scan(tmp_path, mask_root=tmp_path)) == (
        f"{tmp_path} is given as the folder of images and of masks, but they are told"
        " apart by folder. Move the masks to their own one."
    )


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg")
    assert error_of(lambda: ImageSet.scan(path)) == (
        f"{path} is a file but expected the image folder. Give the folder it lies in:"
        f" {tmp_path}"
    )


def test_film_in_place_of_a_folder(tmp_path: Path) -> None:
    film = tmp_path / "film.MOV"
    film.write_bytes(b"x")
    assert error_of(lambda: ImageSet.scan(film)) == (
        f"{film} is a film but expected a folder of photographs. Take frames from it"
        f" first, for example: ffmpeg -i {film} -vf fps=2 -q:v 2 FRAMES/%05d.jpg"
    )


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert error_of(lambda: ImageSet.scan(tmp_path)) == (
        f"no image in {tmp_path} or its sub-folders. Expected files that end in"
        f" {ENDINGS}; hidden ones do not count."
    )


def test_folder_with_a_film_only(tmp_path: Path) -> None:
    for name in ("b.mp4", "a b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert error_of(lambda: ImageSet.scan(tmp_path)) == (
        f"no image in {tmp_path} or its sub-folders. Expected files that end in"
        f" {ENDINGS}; hidden ones do not count. Not read: 2 film files, such as a b.mp4"
        f" (take frames from it first, for example: ffmpeg -i '{tmp_path}/a b.mp4' -vf"
        " fps=2 -q:v 2 FRAMES/%05d.jpg)"
    )


def test_folder_with_unreadable_images_only(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_text("x")
    assert error_of(lambda: ImageSet.scan(tmp_path)) == (
        f"none of the 1 image files in {tmp_path} can be read:\n"
        "  'a b.jpg': its content is none of JPEG, PNG, TIFF, BMP, WebP, HEIC, AVIF,"
        " JPEG 2000\n"
        "Copy them from the camera again, or give another folder."
    )
    for k in range(6):
        (tmp_path / f"{k}.jpg").write_bytes(b"")
    assert error_of(lambda: ImageSet.scan(tmp_path)) == (
        f"none of the 7 image files in {tmp_path} can be read:\n"
        "  '0.jpg': the file is empty; copy it again\n"
        "  '1.jpg': the file is empty; copy it again\n"
        "  '2.jpg': the file is empty; copy it again\n"
        "  '3.jpg': the file is empty; copy it again\n"
        "  '4.jpg': the file is empty; copy it again\n"
        "  and 2 more\n"
        "Copy them from the camera again, or give another folder."
    )


# --------------------------------------------------------------------- camera groups
PHONE = {"make": "Apple", "model": "iPhone", "focal_length_mm": 4.25}


def test_frames_without_exif_share_a_camera_by_size_and_folder() -> None:
    frames = image_set(
        Path(),
        **{f"a/{k}.png": ImageInfo((640, 480), 1, 1) for k in range(3)},
        **{"b/0.png": ImageInfo((640, 480), 1, 1)},
        **{"b/1.png": ImageInfo((480, 640), 1, 1)},
    )
    assert frames.camera_groups("auto") == [
        ("a/0.png", "a/1.png", "a/2.png"),
        ("b/0.png",),
        ("b/1.png",),
    ]


def test_one_phone_held_both_ways_is_one_camera() -> None:
    both = image_set(
        Path(),
        landscape=ImageInfo((4032, 3024), 1, 1, **PHONE),
        portrait=ImageInfo((4032, 3024), 6, 1, **PHONE),
        rotated=ImageInfo((3024, 4032), 1, 1, **PHONE),
    )
    assert both.camera_groups("auto") == [("landscape", "portrait"), ("rotated",)]


@pytest.mark.parametrize(
    "other",
    [
        {"make": "Canon"},
        {"model": "iPhone 2"},
        {"lens_model": "wide"},
        {"focal_length_mm": 1.5},
        {"focal_length_35mm": 13.0},
        {"size": (4031, 3024)},
    ],
)
def test_another_lens_or_size_is_another_camera(other: dict[str, object]) -> None:
    base = {"size": (4032, 3024), "orientation": 1, "num_bytes": 1, **PHONE}
    two = image_set(Path(), a=ImageInfo(**base), b=ImageInfo(**{**base, **other}))
    assert two.camera_groups("auto") == [("a",), ("b",)]


def test_camera_groups_as_asked_for() -> None:
    names = ("a/0", "b/0", "b/1")
    three = image_set(
        Path(), **{n: ImageInfo((9 + k, 9), 1, 1) for k, n in enumerate(names)}
    )
    assert three.camera_groups("single") == [names]
    assert three.camera_groups("per-folder") == [("a/0",), ("b/0", "b/1")]
    assert three.camera_groups("per-image") == [("a/0",), ("b/0",), ("b/1",)]
    assert image_set(Path()).camera_groups("single") == []


# ---------------------------------------------------------------------------- pixels
def rgba(alpha: int) -> Pixels:
    return np.dstack([picture(), np.full((40, 60), alpha, np.uint8)])


LOSSLESS = {
    "rgb.png": (picture(), {}),
    "rgb.bmp": (picture(), {}),
    "rgb.tif": (picture(), {}),
    "lzw.tif": (picture(), {"compression": "tiff_lzw"}),
    "rgb.webp": (picture(), {"lossless": True}),
    "transparent.png": (rgba(0), {}),
    "half.png": (rgba(128), {}),
    "interlaced.png": (picture(), {"interlace": 1}),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_are_read_exactly(tmp_path: Path, name: str) -> None:
    written, options = LOSSLESS[name]
    pixels = read_pixels(write(tmp_path / name, written, **options))
    assert (pixels.shape, pixels.dtype) == ((40, 60, 3), np.uint8)
    assert (pixels == picture()).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_to_8(tmp_path: Path, suffix: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60, channels), np.uint16)
    deep[0, 0], deep[0, 1] = 0, 65535
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep)
    pixels = read_pixels(tmp_path / f"a.{suffix}").astype(float)
    expected = np.broadcast_to(deep[..., 2::-1] / 257, (40, 60, 3))
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[0, 0] == 0).all() and (pixels[0, 1] == 255).all()


def test_grey_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(picture())
    for mode in ("L", "LA", "P", "1"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
        pixels = read_pixels(tmp_path / f"{mode}.png")
        assert (pixels == np.asarray(image.convert(mode).convert("RGB"))).all(), mode


def test_cmyk_jpeg_has_the_right_colours(tmp_path: Path) -> None:
    image = Image.fromarray(picture()).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=95)
    pixels = read_pixels(tmp_path / "a.jpg").astype(int)
    assert np.abs(pixels - np.asarray(image.convert("RGB"))).mean() < 4


def write_turned(path: Path, pixels: Pixels, orientation: int) -> Path:
    options: dict[str, object] = {".webp": {"lossless": True}}.get(path.suffix, {})
    return write(path, pixels, exif=exif(orientation=orientation), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_pixels_are_as_stored(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = write_turned(tmp_path / f"a.{suffix}", picture(), orientation)
    pixels = read_pixels(path)
    assert ImageSet.scan(tmp_path).infos[path.name].size == (60, 40)
    assert pixels.shape == (40, 60, 3)
    error = np.abs(pixels.astype(int) - picture()).mean()
    assert error < 6 if suffix == "jpg" else error == 0


def test_missing_file_is_an_image_error(tmp_path: Path) -> None:
    assert error_of(lambda: read_pixels(tmp_path / "no.jpg")) == (
        f"{tmp_path}/no.jpg: the file cannot be read: No such file or directory"
    )


# --------------------------------------------------------------------------- batches
def test_batches_hold_images_of_one_size(tmp_path: Path) -> None:
    sizes = [(60, 40), (60, 40), (60, 40), (40, 60), (60, 40)]
    for k, size in enumerate(sizes):
        write(tmp_path / f"{k}.png", picture(*size, seed=k))
    scanned = ImageSet.scan(tmp_path)
    batches = list(load_batches(scanned, scanned.names, max_size=None, batch_size=2))
    assert [names for names, _ in batches] == [
        ("0.png", "1.png"),
        ("2.png", "4.png"),
        ("3.png",),
    ]
    for names, batch in batches:
        assert batch.pixels.dtype == np.float32
        assert batch.pixels.flags.c_contiguous
        for item, name in enumerate(names):
            expected = read_pixels(tmp_path / name).transpose(2, 0, 1) / 255
            assert np.abs(batch.pixels[item] - expected).max() < 1e-6
            assert tuple(batch.sizes[item]) == sizes[int(name[0])]


def test_batches_follow_the_order_of_the_names(tmp_path: Path) -> None:
    for k in range(6):
        write(tmp_path / f"{k}.png")
    scanned = ImageSet.scan(tmp_path)
    order = [f"{k}.png" for k in (4, 1, 5, 0)]
    batches = load_batches(scanned, order, max_size=8, batch_size=3, num_workers=3)
    assert list(itertools.chain.from_iterable(names for names, _ in batches)) == order


def test_portrait_among_landscape_fills_batches(tmp_path: Path) -> None:
    for k in range(24):
        write(tmp_path / f"{k:02}.png", picture(*((20, 10), (10, 20))[k % 3 == 2]))
    scanned = ImageSet.scan(tmp_path)

    def names_of_batches(num_workers: int) -> list[tuple[str, ...]]:
        batches = load_batches(
            scanned,
            scanned.names,
            max_size=None,
            batch_size=4,
            num_workers=num_workers,
        )
        return [names for names, _ in batches]

    batches = names_of_batches(1)
    assert [len(names) for names in batches] == [4] * 6
    assert sorted(itertools.chain.from_iterable(batches)) == list(scanned.names)
    assert names_of_batches(5) == batches


def test_image_of_a_rare_size_waits_for_so_many_others_only(tmp_path: Path) -> None:
    for k in range(12):
        write(tmp_path / f"{k:02}.png", picture(20 + k, 10))
    scanned = ImageSet.scan(tmp_path)
    batches = load_batches(
        scanned, scanned.names, max_size=None, batch_size=3, num_workers=1
    )
    names, _ = next(batches)
    assert names == ("00.png",)
    assert [names for names, _ in batches] == [(name,) for name in scanned.names[1:]]


def test_batches_of_one_keep_the_order_of_the_names(tmp_path: Path) -> None:
    for k in range(6):
        write(tmp_path / f"{k}.png", picture(*((20, 10), (10, 20))[k % 2]))
    scanned = ImageSet.scan(tmp_path)
    batches = load_batches(scanned, scanned.names, max_size=None)
    assert [names for names, _ in batches] == [(name,) for name in scanned.names]


def test_no_names_give_no_batches(tmp_path: Path) -> None:
    assert list(load_batches(image_set(tmp_path), [], max_size=8)) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_batches_are_upright_and_reduced(tmp_path: Path, orientation: int) -> None:
    path = write_turned(tmp_path / "a.png", picture(), orientation)
    scanned = ImageSet.scan(tmp_path)
    ((_, batch),) = load_batches(scanned, scanned.names, max_size=30)
    assert batch.network_size == upright_size((30, 20), orientation)
    assert batch.sizes.tolist() == [[60, 40]]
    assert batch.orientations.tolist() == [orientation]
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    expected = upright.reshape(batch.network_size[1], 2, -1, 2, 3).mean((1, 3))
    assert np.abs(batch.pixels[0].transpose(1, 2, 0) * 255 - expected).max() <= 0.76


def test_reduced_size_keeps_the_shape_and_never_grows() -> None:
    assert fit_size((4032, 3024), 1600) == (1600, 1200)
    assert fit_size((3024, 4032), 1600) == (1200, 1600)
    assert fit_size((100, 50), 1600) == (100, 50)
    assert fit_size((1600, 50), 1600) == (1600, 50)
    assert fit_size((5000, 3), 100) == (100, 1)
    assert fit_size((5000, 3), None) == (5000, 3)


def test_undecodable_image_is_reported_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(5):
        write(tmp_path / f"{k}.jpg")
    scanned = ImageSet.scan(tmp_path)
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "2.jpg").write_bytes(b"text")
    write(tmp_path / "3.jpg", picture(30, 30))
    reasons: dict[str, str] = {}
    batches = load_batches(
        scanned,
        scanned.names,
        max_size=None,
        batch_size=4,
        on_unreadable=reasons.__setitem__,
    )
    assert [names for names, _ in batches] == [("0.jpg", "4.jpg")]
    assert reasons == {
        "1.jpg": "the file is empty; copy it again",
        "2.jpg": "its content is none of JPEG, PNG, TIFF, BMP, WebP, HEIC, AVIF, JPEG"
        " 2000",
        "3.jpg": "it is 30 x 30 pixels now but was 60 x 40 before; start again",
    }
    assert not caplog.records
    list(load_batches(scanned, ["1.jpg"], max_size=None))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/1.jpg is left out: the file is empty; copy it again"
    ]


def test_a_photograph_that_is_gone_ends_the_loading(tmp_path: Path) -> None:
    """It may come back, so what has no features for want of it is not left out."""
    for k in range(2):
        write(tmp_path / f"{k}.jpg")
    scanned = ImageSet.scan(tmp_path)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(ImageError) as told:
        list(load_batches(scanned, scanned.names, max_size=None))
    assert str(told.value) == (
        f"{tmp_path}/1.jpg is gone since the photographs were read. Put it back, or see"
        " whether its disk is still there, and run the same command again."
    )


def loader_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("sfmprep-load")]


@pytest.mark.timeout(300)
def test_error_in_a_worker_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(8):
        write(tmp_path / f"{k}.jpg")
    scanned = ImageSet.scan(tmp_path)

    def fail(path: Path, **_: bool) -> Pixels:
        raise MemoryError(path.name)

    monkeypatch.setattr(batching, "decode", fail)
    with pytest.raises(MemoryError, match=r"0\.jpg"):
        next(iter(load_batches(scanned, scanned.names, max_size=None)))
    assert not loader_threads()


@pytest.mark.timeout(300)
def test_reading_ahead_is_bounded_and_stops_with_the_consumer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(40):
        write(tmp_path / f"{k:02}.jpg")
    scanned = ImageSet.scan(tmp_path)
    decoded: list[str] = []

    def count(path: Path, **_: bool) -> Pixels:
        decoded.append(path.name)
        return image_file.decode(path)

    monkeypatch.setattr(batching, "decode", count)
    batches = load_batches(
        scanned, scanned.names, max_size=None, batch_size=2, num_workers=3
    )
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()
    assert 2 <= len(decoded) <= 2 + 2 + 3


def test_numbers_below_one_and_unknown_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    scanned = ImageSet.scan(tmp_path)
    for option in ("max_size", "batch_size", "num_workers"):
        options = {"max_size": 8, option: 0}
        with pytest.raises(ConfigError) as caught:
            load_batches(scanned, scanned.names, **options)
        assert str(caught.value) == f"{option}=0 but expected 1 or more"
    with pytest.raises(ConfigError) as caught:
        load_batches(scanned, ["b.jpg"], max_size=8)
    assert str(caught.value) == (
        f"'b.jpg' is not among the 1 images in {tmp_path}. Give its path relative to"
        " that folder."
    )


# ----------------------------------------------------------------- real photographs
@pytest.mark.shared
@pytest.mark.parametrize("motif", ["Landscape", "Portrait"])
def test_real_photographs_of_all_orientations_are_one_picture(
    shared: Path, motif: str
) -> None:
    scanned = ImageSet.scan(shared / "data" / "scenes" / "exif-orientation" / "images")
    names = [name for name in scanned.names if name.startswith(motif)]
    assert [scanned.infos[name].orientation for name in names] == [1, *range(1, 9)]
    upright = [
        batch.pixels[0].mean(0)
        for _, batch in load_batches(scanned, names, max_size=300)
    ]
    for name, pixels in zip(names, upright, strict=True):
        assert pixels.shape == upright[0].shape, name
        assert np.corrcoef(pixels.ravel(), upright[0].ravel())[0, 1] > 0.99, name
    turned = upright_pixels(read_pixels(scanned.path(names[6])), 3)
    assert turned.shape[:2] != upright[0].shape  # the check above can fail


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_alpha_is_noticed_in_the_header(tmp_path: Path, channels: int) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, channels), np.uint8))

    assert ImageSet.scan(tmp_path).infos["a.png"].has_alpha == (channels == 4)
