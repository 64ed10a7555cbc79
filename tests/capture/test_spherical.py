"""Films of whole spheres, and of two lenses."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from sfmprep.capture.round_picture import closes
from sfmprep.capture.spherical import sphere_of_film
from sfmprep.errors import ImageError
from sfmprep.types import Bytes
from tests.support.films import texture, write_film

UUID = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content


def spherical(projection: bytes, stereo: int | None = None) -> bytes:
    """The boxes of version 2."""
    shown = box(b"prhd", bytes(16)) + box(projection, bytes(20))
    found = box(b"sv3d", box(b"svhd", bytes(5)) + box(b"proj", shown))
    if stereo is not None:
        found = box(b"st3d", bytes(4) + bytes([stereo])) + found
    return found


def xml(*tags: str) -> bytes:
    """The box of version 1."""
    text = "".join(tags)
    return box(
        b"uuid", UUID + f"<rdf:SphericalVideo>{text}</rdf:SphericalVideo>".encode()
    )


TRUE = "<GSpherical:Spherical>true</GSpherical:Spherical>"
EQUI = "<GSpherical:ProjectionType>equirectangular</GSpherical:ProjectionType>"
ABOVE = "<GSpherical:StereoMode>top-bottom</GSpherical:StereoMode>"


def film_of(path: Path, told: bytes) -> Path:
    """The skeleton of an MP4 file that says so much."""
    handler = box(b"hdlr", bytes(8) + b"vide" + bytes(13))
    index = box(b"moov", box(b"trak", box(b"mdia", handler) + told))
    path.write_bytes(box(b"ftyp", b"isom\0\0\2\0isomiso2") + index)
    return path


@pytest.mark.parametrize(
    ("told", "layout"),
    [
        (spherical(b"equi"), "mono"),
        (spherical(b"equi", 0), "mono"),
        (spherical(b"equi", 1), "top-bottom"),
        (spherical(b"equi", 2), "left-right"),
        (xml(TRUE), "mono"),
        (xml(TRUE, EQUI), "mono"),
        (xml(TRUE, EQUI, ABOVE), "top-bottom"),
    ],
)
def test_metadata_tell(told: bytes, layout: str, tmp_path: Path) -> None:
    film = film_of(tmp_path / "a.mp4", told)
    assert sphere_of_film(film, "auto") == layout
    assert sphere_of_film(film, "never") is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            spherical(b"cbmp"),
            "a 360° film whose sphere lies in a cubemap; make it equirectangular, for"
            " example: ffmpeg -i 'a b.mp4' -vf v360=c3x2:e 'a b-360.mp4'",
        ),
        (
            spherical(b"mshp"),
            "a 360° film whose sphere lies in a mesh; make it equirectangular with the"
            " program it came from",
        ),
        (
            xml(TRUE, EQUI.replace("equirectangular", "cylinder")),
            "a 360° film whose sphere lies in a cylinder; make it equirectangular with"
            " the program it came from",
        ),
    ],
)
def test_other_projections_are_refused(
    told: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError) as caught:
        sphere_of_film(film_of(tmp_path / "a b.mp4", told), "auto")
    assert str(caught.value) == message


def test_two_lenses_are_named_by_the_kind_of_file(tmp_path: Path) -> None:
    start = "it shows the two lenses of a 360° camera, not joined yet; "
    camera = start + "export it as a 360° MP4 with the camera's program, or roughly: "
    one = film_of(tmp_path / "a.insv", b"")
    with pytest.raises(ImageError) as caught:
        sphere_of_film(one, "auto")
    assert str(caught.value) == (
        camera + "ffmpeg -i a.insv -vf v360=dfisheye:e:ih_fov=200:iv_fov=200 a-360.mp4"
    )
    two = film_of(tmp_path / "b.insv", box(b"hdlr", bytes(8) + b"vide"))
    with pytest.raises(ImageError) as caught:
        sphere_of_film(two, "auto")
    assert str(caught.value) == (
        camera + "ffmpeg -i b.insv -filter_complex"
        " '[0:v:0][0:v:1]hstack,v360=dfisheye:e:ih_fov=200:iv_fov=200' b-360.mp4"
    )
    with pytest.raises(ImageError) as caught:
        sphere_of_film(film_of(tmp_path / "c.360", b""), "auto")
    assert str(caught.value) == start + "export it as a 360° MP4 with GoPro Player"
    whole = film_of(tmp_path / "d.insv", spherical(b"equi"))
    assert sphere_of_film(whole, "auto") == "mono"


def around(width: int) -> Bytes:
    """A picture that closes behind, above and below."""
    picture = texture(width // 2, width // 2)
    whole = np.hstack([picture, picture[:, ::-1]])
    for end in (whole[:3], whole[-3:]):
        end[:] = end.mean(axis=(0, 1))
    return whole


def test_a_sphere_closes() -> None:
    whole = around(256)
    assert closes(np.roll(whole, 50, axis=1))
    assert not closes(whole[:, :-40])
    assert not closes(whole[20:])
    assert not closes(whole[:-20])
    barred = whole.copy()
    barred[:, :20] = barred[:, -20:] = 0  # black bars at both sides are alike
    assert not closes(barred)


@pytest.mark.parametrize(
    ("size", "is_whole", "which", "layout"),
    [
        ((1920, 960), True, "auto", "mono"),
        ((1920, 960), False, "auto", None),
        ((1920, 960), False, "always", "mono"),
        ((640, 320), True, "auto", None),
        ((640, 320), True, "always", "mono"),
        ((640, 480), True, "always", None),
    ],
)
def test_shape_and_border_tell_where_nothing_else_does(
    size: tuple[int, int],
    is_whole: bool,
    which: str,
    layout: str | None,
    tmp_path: Path,
) -> None:
    whole = cv2.resize(around(size[0]), size, interpolation=cv2.INTER_AREA)
    picture = whole if is_whole else texture(*size)
    film = write_film(tmp_path / "a.mp4", [picture] * 2)
    assert sphere_of_film(film, which) == layout


def test_two_lenses_in_one_picture_are_seen(tmp_path: Path) -> None:
    noise = texture(960, 960) // 2 + 120
    y, x = np.mgrid[:960, :960] / 960 - 0.5
    lens = noise * (x**2 + y**2 < 0.25)[..., None].astype(np.uint8)
    film = write_film(tmp_path / "a.mp4", [np.hstack([lens, lens])] * 2)
    with pytest.raises(ImageError) as caught:
        sphere_of_film(film, "auto")
    assert str(caught.value).startswith("it shows the two lenses of a 360° camera, not")
