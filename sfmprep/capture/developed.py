"""What is no photograph yet: films, RAW files, panoramas; and what they became."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sfmprep.capture.folder import (
    expect_folder,
    find_files,
    is_film,
    is_image,
    is_raw,
    photograph_folder,
    without_twin,
)
from sfmprep.capture.panorama import Cut, Panorama, is_cut
from sfmprep.devices import num_cores
from sfmprep.threads import thread_pool

_TURNED = 0.8  # share of the steps, from where on it is said
_FEW_STEPS = 4
_MANY_BLURRED = 0.3
# its zscale takes what is white on paper, 203 cd/m2 by ITU-R BT.2408, for 1
_TO_SDR = (
    "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)


class Remark(NamedTuple):
    """What a person should know of a film, and what to do about it."""

    text: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film, and the frames of it that are used as photographs."""

    name: str  # of the file, as those of photographs
    seconds: float  # as far as it can be decoded
    lost_seconds: float  # that it says to have beyond that
    num_frames: int
    frames: tuple[
        str, ...
    ]  # names, in the order of time: of photographs, or of spheres
    views: tuple[str, ...] = ()  # folders of the photographs cut from each such sphere
    times: tuple[float, ...]  # of each, seconds
    segments: tuple[int, ...]  # of each: 0, and one more after every cut
    num_blurred: int  # of the frames looked at, against those around them
    num_blurred_used: int
    num_thinned: int  # taken at first, but more than was asked for
    most_new: float  # 0..1: the largest share of the picture new from one to the next
    share_turned: float  # 0..1: of the steps that a turn, or a flat scene, explains
    curve: tuple[tuple[float, float], ...]  # seconds, sharpness against its median
    subtitles: str | None = None  # what tells the positions of a drone
    num_located: int = 0  # frames that are used and have a position by it
    subtitles_fault: str | None = None  # why it is of no use
    hdr: str | None = None  # how it says to be HDR
    is_flat: bool = False  # whether light of HDR was taken for that of other films

    @property
    def num_cuts(self) -> int:
        """Cuts between frames that are used."""
        return len(set(self.segments)) - 1 if self.segments else 0

    def shots(self) -> list[list[str]]:
        """Names of photographs between one cut and the next, in the order of time.

        Of a film of spheres each view has its own.
        """
        shots: dict[tuple[str, int], list[str]] = {}
        for view in self.views or ("",):
            for name, segment in zip(self.frames, self.segments, strict=True):
                shots.setdefault((view, segment), []).append(view + name)
        return list(shots.values())

    def summary(self) -> str:
        """What was taken of it, in a sentence."""
        used = f"{len(self.frames)} of {self.num_frames:,} frames"
        if self.num_located:
            used += f", {self.num_located} with a position by {self.subtitles},"
        if self.views:
            used += f" in {len(self.views)} views each"
        if not self.num_thinned:
            return f"{self.name}: {used} are used"
        worth = len(self.frames) + self.num_thinned
        return (
            f"{self.name}: {used} are used, as film.frames limits the {worth} that are"
            f" worth it; up to {self.most_new:.0%} of the picture is new from one to"
            " the next"
        )

    def remarks(self) -> list[Remark]:
        """What a person should know; mostly nothing."""
        found = []
        if self.lost_seconds:
            found.append(
                Remark(
                    f"{self.name} cannot be decoded beyond {self.seconds:.1f} of"
                    f" {self.seconds + self.lost_seconds:.1f} s; what comes before is"
                    " used.",
                    "Copy it from the camera again.",
                )
            )
        if self.hdr is not None:
            stem = PurePosixPath(self.name).stem
            source, target = map(shlex.quote, (self.name, f"{stem}-sdr.mp4"))
            lost = (
                "its colours are taken without tone mapping, so what is trained looks"
                " flat"
                if self.is_flat
                else "what is brighter than white paper, such as lamps and windows, is"
                " plain white in its frames"
            )
            found.append(
                Remark(
                    f"{self.name} is HDR ({self.hdr}): {lost}; poses do not mind.",
                    "For the colours of a player convert it first, for example: ffmpeg"
                    f" -i {source} -vf {_TO_SDR} {target} (an FFmpeg with zscale), and"
                    " give that film in place of this one.",
                )
            )
        if self.subtitles_fault is not None:
            found.append(
                Remark(
                    f"{self.subtitles} beside {self.name} is not used:"
                    f" {self.subtitles_fault}.",
                    "Copy it from the drone again for metres and north; else it does no"
                    " harm.",
                )
            )
        elif self.subtitles is not None and self.num_located < len(self.frames):
            found.append(
                Remark(
                    f"{self.subtitles} tells a position for {self.num_located} of the"
                    f" {len(self.frames)} frames of {self.name} that are used.",
                    "Check that both are of the same flight.",
                )
            )
        if len(self.frames) == 1:
            found.append(
                Remark(
                    f"In the {self.seconds:.1f} s of {self.name} nothing moves, so one"
                    " frame is all that it gives.",
                    "Walk around what you film.",
                )
            )
        if len(self.frames) > _FEW_STEPS and self.share_turned >= _TURNED:
            found.append(
                Remark(
                    f"In {self.share_turned:.0%} of {self.name} the camera only turns,"
                    " or what it shows is flat: that gives no depth.",
                    "Walk while you film.",
                )
            )
        if self.num_blurred_used > _MANY_BLURRED * len(self.frames):
            found.append(
                Remark(
                    f"{self.num_blurred_used} of the {len(self.frames)} frames of"
                    f" {self.name} that are used are blurred: nothing sharper is around"
                    " them.",
                    "Move more slowly, in more light.",
                )
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Film:
        """What `to_json` has written."""
        pairs = tuple((float(x), float(y)) for x, y in data["curve"])
        keys = ("frames", "views", "times", "segments")
        lists = {key: tuple(data[key]) for key in keys if key in data}
        return cls(**{**data, **lists, "curve": pairs})


@dataclass(frozen=True, kw_only=True, eq=False)
class Developed:
    """The photographs that films, RAW files and panoramas of a capture became."""

    source: Path  # what the user gave: a folder, or a film
    folder: Path  # where the photographs lie
    names: frozenset[str]  # of the photographs, POSIX paths relative to `folder`
    checksums: Mapping[str, str]  # of the content of each of these files, by name
    failures: Mapping[str, str]  # why nothing came of a file, by its name
    films: tuple[Film, ...]
    panoramas: tuple[Panorama, ...] = ()


def files_to_develop(
    source: Path, mask_root: Path | None, cut: Cut = "never"
) -> dict[str, Path]:
    """The films, RAW files and panoramas of a capture by name, sorted.

    Not a RAW file beside its JPEG, nor the moving part of a live photograph. None where
    there is no such folder.

    Args:
        source: A folder of photographs, or a film.
        mask_root: A folder that is not entered, or None.
        cut: Which images are panoramas that are cut into views.

    Raises:
        ImageError: there is no such folder of masks.
    """
    if source.is_file():
        return {source.name: source} if is_film(source.name) else {}
    if not source.is_dir():
        return {}
    folder, _ = photograph_folder(source)
    if mask_root is not None and not mask_root.is_file():
        expect_folder(mask_root, "mask")
    files = sorted(find_files(folder, mask_root, {}))
    images = [name for name in files if is_image(name)]
    others = [name for name in files if is_film(name) or is_raw(name)]
    with thread_pool(min(num_cores(), 8)) as pool:  # some are decoded for it
        looked = pool.map(lambda name: is_cut(folder / name, cut), images)
        panoramas = [n for n, yes in zip(images, looked, strict=True) if yes]
    found = sorted([*without_twin(others, images), *panoramas])
    return {name: folder / name for name in found}


def places(names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Where films and RAW files are developed to, and which cannot be.

    Returns:
        By name the folder of a film's frames, `walk` for `walk.mp4`, or the JPEG of a
        RAW file; and by name why there is none.
    """
    taken: dict[str, str] = {}
    failures: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        place = str(path.with_suffix("" if is_film(name) else ".jpg"))
        if place in taken.values():
            first = next(other for other, its in taken.items() if its == place)
            failures[name] = f"it has the name of {first}, which is used; rename it"
        else:
            taken[name] = place
    return taken, failures
