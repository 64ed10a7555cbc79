"""Which films show a whole sphere, and which two lenses that nothing has joined yet."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sfmprep.capture.film import read_frames, read_index
from sfmprep.capture.panorama import Cut, Layout
from sfmprep.capture.round_picture import closes, shows_two_lenses
from sfmprep.errors import ImageError

# Google, "Spherical Video V2 RFC": the boxes st3d and sv3d; V1: XML in a box uuid.
_STEREO: dict[int, Layout] = {1: "top-bottom", 2: "left-right"}
_STEREO_V1: dict[bytes, Layout] = {
    b"top-bottom": "top-bottom",
    b"left-right": "left-right",
}
_UUID = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")
_SPHERICAL = re.compile(rb"<GSpherical:Spherical>\s*true")
_PROJECTION = re.compile(rb"<GSpherical:ProjectionType>\s*(\w+)")
_STEREO_WORD = re.compile(rb"<GSpherical:StereoMode>\s*([\w-]+)")
_OTHERS = {b"cbmp": "a cubemap", b"mshp": "a mesh"}
_TWO_LENSES = (".insv", ".360")
_JOIN = "v360=dfisheye:e:ih_fov=200:iv_fov=200"
_MIN_WIDTH = 1920


def sphere_of_film(path: Path, which: Cut) -> Layout | None:
    """How a film holds a whole sphere, or two for two eyes; None if it does not.

    It does where its spherical metadata (MP4, MOV) say so, or where it is twice as wide
    as high and closes behind, above and below, see `closes`. `always` takes every film
    of that shape for one, and `never` none.

    Raises:
        ImageError: it is a sphere in another projection, or shows two lenses that
            nothing has joined yet. The message is the bare reason.
    """
    if which == "never":
        return None
    index = read_index(path) or b""
    told = _told(index, path)
    if told is not None:
        return told
    if path.suffix.lower() in _TWO_LENSES:
        raise ImageError(_two_lenses(path, index.count(b"vide")))
    frames = read_frames(path)
    try:
        pixels = next(frames).pixels
    except (ImageError, StopIteration):
        return None  # whoever decodes it says what is wrong
    finally:
        frames.close()
    height, width = pixels.shape[:2]
    if width != 2 * height or width < _MIN_WIDTH and which != "always":
        return None
    if shows_two_lenses(pixels):
        raise ImageError(_two_lenses(path, 1))
    return "mono" if which == "always" or closes(pixels) else None


def _told(index: bytes, path: Path) -> Layout | None:
    """What the metadata say; `index` is the box moov."""
    place = index.find(b"sv3d")
    if place >= 4:
        box = index[place : place - 4 + int.from_bytes(index[place - 4 : place])]
        for kind, what in _OTHERS.items():
            if kind in box:
                raise ImageError(_other(path, what, b"cbmp" in box))
        if b"equi" in box:
            stereo = index.find(b"st3d")
            mode = index[stereo + 8] if 0 <= stereo < len(index) - 8 else 0
            return _STEREO.get(mode, "mono")
    place = index.find(_UUID)
    if place < 0:
        return None
    xml = index[
        place : place - 8 + int.from_bytes(index[max(place - 8, 0) : place - 4])
    ]
    if not _SPHERICAL.search(xml):
        return None
    projection = _PROJECTION.search(xml)
    if projection and projection[1] != b"equirectangular":
        raise ImageError(_other(path, f"a {projection[1].decode()}", False))
    stereo_v1 = _STEREO_WORD.search(xml)
    return _STEREO_V1.get(stereo_v1[1] if stereo_v1 else b"", "mono")


def _other(path: Path, what: str, is_cubemap: bool) -> str:
    command = _command(path, "-vf v360=c3x2:e") if is_cubemap else None
    return f"a 360° film whose sphere lies in {what}; make it equirectangular" + (
        f", for example: {command}" if command else " with the program it came from"
    )


def _two_lenses(path: Path, num_tracks: int) -> str:
    start = "it shows the two lenses of a 360° camera, not joined yet; "
    if path.suffix.lower() == ".360":
        return start + "export it as a 360° MP4 with GoPro Player"
    if num_tracks > 1:
        how = f"-filter_complex '[0:v:0][0:v:1]hstack,{_JOIN}'"
    else:
        how = f"-vf {_JOIN}"
    return (
        f"{start}export it as a 360° MP4 with the camera's program, or roughly:"
        f" {_command(path, how)}"
    )


def _command(path: Path, how: str) -> str:
    joined = shlex.quote(f"{path.stem}-360.mp4")
    return f"ffmpeg -i {shlex.quote(path.name)} {how} {joined}"
