"""Captures of drones and 360° cameras from the file to the dataset, against the truth.

    python -m tests.bench.captures                       (or: make bench-captures)
    python -m tests.bench.captures --only drone-srt --minutes 10

Small ones, rendered in the courtyard, each by `sfmprep` as a user calls it. Results are
added to a file, line by line, and what is in it is not run again; then
`examples/captures.md` is written from it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from PIL import Image

from sfmprep.capture.panorama import View
from sfmprep.demo.courtyard import build_courtyard
from sfmprep.demo.raycast import render_image
from sfmprep.demo.textures import to_texture
from sfmprep.types import Bytes, Float64
from tests.bench.keyframe_films import along
from tests.support.films import add_subtitles, write_film
from tests.support.panoramas import render_panorama

ROOT = Path(__file__).resolve().parents[2]
_RATE = 30
_TIMES = 10.0  # the courtyard is so many times as large for a drone
_LEVEL = np.array([(1, 0, 0), (0, 0, -1), (0, 1, 0)], np.float64)  # looks along y
_VIEW = re.compile(r"y(\d+)p([-+_]\d+)")  # datasets have no + in names
_TIME = re.compile(r"(\d+)h(\d+)m(\d+)s(\d+)")
_PHOTOGRAPH = re.compile(r"IMG_(\d+)")
_EARTH_M = 6_378_137.0
_PLACE = 48.0, 11.0  # degrees


@dataclass(frozen=True)
class Truth:
    """Camera from world, or panorama from world, of each frame or photograph."""

    rotations: Float64  # [N, 3, 3]
    centres: Float64  # [N, 3] in metres, if the capture tells them


@dataclass(frozen=True)
class Capture:
    """A capture, how it is made, and how it is reconstructed."""

    name: str
    what: str
    make: Callable[[Path], Truth]  # writes `in/` and what else it needs
    is_metric: bool = False  # it tells its scale
    has_poses: bool = False  # `poses.csv`, for `refine`
    options: tuple[str, ...] = ()


def _drone(folder: Path, *, inside: bool) -> Truth:
    cameras = along(np.linspace(0, 0.6, 90), (640, 480))
    surfaces, sky = build_courtyard(0)
    pictures = [
        to_texture(cv2.GaussianBlur(render_image(surfaces, camera, sky), (0, 0), 0.5))
        for camera in cameras
    ]
    film = write_film(folder / "in" / "DJI_0001.MP4", pictures, rate=_RATE)
    centres = _TIMES * np.array([camera.centre for camera in cameras])
    said = [_said(number, centre) for number, centre in enumerate(centres)]
    if inside:
        add_subtitles(film, said)
    else:
        text = "".join(
            f"{k + 1}\n00:00:{k // _RATE:02},{k % _RATE * 1000 // _RATE:03} -->"
            f" 00:01:00,000\n{line}\n\n"
            for k, line in enumerate(said)
        )
        film.with_suffix(".SRT").write_text(text, "utf-8")
    return Truth(np.array([camera.rotation for camera in cameras]), centres)


def _said(number: int, centre: Float64) -> str:
    """As DJI's drones say it, to six digits, of a sphere as large as the earth."""
    east, north, up = centre
    latitude = _PLACE[0] + math.degrees(north / _EARTH_M)
    longitude = _PLACE[1] + math.degrees(
        east / (_EARTH_M * math.cos(math.radians(_PLACE[0])))
    )
    return (
        f"FrameCnt: {number + 1}, [latitude: {latitude:.6f}] [longitude:"
        f" {longitude:.6f}] [rel_alt: {up:.3f} abs_alt: {up + 500:.3f}]"
    )


def _spheres(number: int, width: int) -> Iterator[tuple[Bytes, Float64]]:
    surfaces, sky = build_courtyard(0)
    for camera in along(np.linspace(0, 0.6, number), (4, 3)):
        yield render_panorama(surfaces, sky, camera.centre, width), camera.centre


def _film_of_spheres(folder: Path) -> Truth:
    found = list(_spheres(40, 1280))
    write_film(folder / "in" / "VID_360.mp4", [picture for picture, _ in found])
    return _truth([centre for _, centre in found])


def _part_of_spheres(folder: Path) -> Truth:
    """Without the lower quarter and the upper one, as their XMP says."""
    (folder / "in").mkdir(parents=True)
    centres, width = list[Float64](), 1536
    for k, (picture, centre) in enumerate(_spheres(7, width)):
        cut = picture[width // 8 : -width // 8, :, ::-1]
        Image.fromarray(np.ascontiguousarray(cut)).save(
            folder / "in" / f"IMG_{k}.jpg", quality=95, xmp=_xmp(width)
        )
        centres.append(centre)
    return _truth(centres)


def _spheres_with_poses(folder: Path) -> Truth:
    """Poses of the panoramas, off by some 2 degrees and 10 cm, in a table."""
    (folder / "in").mkdir(parents=True)
    rng, centres = np.random.default_rng(0), list[Float64]()
    lines = ["name,x,y,z,qw,qx,qy,qz"]
    for k, (picture, centre) in enumerate(_spheres(7, 1536)):
        cv2.imwrite(str(folder / "in" / f"IMG_{k}.jpg"), picture)
        turn = pycolmap.Rotation3d(rng.normal(0, np.radians(2), 3)).matrix() @ _LEVEL
        x, y, z, w = pycolmap.Rotation3d(turn.T).quat
        at = centre + rng.normal(0, 0.1, 3)
        lines.append(",".join(map(str, (f"IMG_{k}.jpg", *at, w, x, y, z))))
        centres.append(centre)
    (folder / "poses.csv").write_text("\n".join(lines), "utf-8")
    return _truth(centres)


def _xmp(width: int) -> bytes:
    told = {
        "ProjectionType": "equirectangular",
        "CroppedAreaImageWidthPixels": width,
        "CroppedAreaImageHeightPixels": width // 4,
        "CroppedAreaLeftPixels": 0,
        "CroppedAreaTopPixels": width // 8,
        "FullPanoWidthPixels": width,
        "FullPanoHeightPixels": width // 2,
    }
    words = " ".join(f'GPano:{key}="{value}"' for key, value in told.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
        f' xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {words}/></rdf:RDF>'
        "</x:xmpmeta>"
    ).encode()


def _truth(centres: Sequence[Float64]) -> Truth:
    return Truth(np.array([_LEVEL] * len(centres)), np.array(centres))


_CUT = ("--set", "panorama.cut=always")
CAPTURES = (
    Capture(
        "drone-srt",
        "a drone's film, its positions beside it (.SRT)",
        lambda folder: _drone(folder, inside=False),
        is_metric=True,
    ),
    Capture(
        "drone-mp4",
        "the same film, its positions in a track of subtitles",
        lambda folder: _drone(folder, inside=True),
        is_metric=True,
    ),
    Capture("film-360", "a film of spheres, 40 frames", _film_of_spheres, options=_CUT),
    Capture("part-360", "7 parts of spheres, told by their XMP", _part_of_spheres),
    Capture(
        "poses-360",
        "7 spheres whose poses are known to 2 degrees and 10 cm (`refine`)",
        _spheres_with_poses,
        has_poses=True,
        options=_CUT,
    ),
)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [capture.name for capture in CAPTURES]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--minutes", type=float, default=60, help="the most it takes")
    scratch = ROOT / "build" / "captures"
    parser.add_argument("--scratch", type=Path, default=scratch)
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / "captures.md")
    options = parser.parse_args()
    results = options.scratch / "results.jsonl"
    deadline = time.monotonic() + 60 * options.minutes
    rows = _rows(results)
    for capture in CAPTURES:
        left = deadline - time.monotonic()
        is_done = any(row["name"] == capture.name for row in rows)
        if capture.name not in options.only or is_done or left < 0:
            continue
        row = _run(capture, options.scratch / capture.name, left)
        options.scratch.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(_line(row), flush=True)
    options.page.write_text(_page(rows), "utf-8")


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def _run(capture: Capture, folder: Path, limit_s: float) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    truth = capture.make(folder)
    out = folder / "out"
    program = [sys.executable, "-m", "sfmprep"]
    poses = [str(folder / "poses.csv")] if capture.has_poses else []
    program += ["refine" if poses else "reconstruct", str(folder / "in"), *poses]
    command = [*program, str(out), "--recipe", "sift", *capture.options]
    begin = time.monotonic()
    environment = {**os.environ, "SFMPREP_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=limit_s
    )
    seconds = time.monotonic() - begin
    row = {"name": capture.name, "what": capture.what, "seconds": seconds}
    if done.returncode:
        return {**row, "failure": done.stderr[-400:]}
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    is_world = capture.is_metric or capture.has_poses
    found = {**row, **_judged(model, truth, is_world), "failure": ""}
    place = out / "georeference.json"
    found["has_place"] = place.is_file() or (out / "work" / place.name).is_file()
    report = json.loads((out / "report.json").read_text("utf-8"))
    found["images"] = len(report["images"])
    return found


def _judged(
    model: pycolmap.Reconstruction, truth: Truth, is_metric: bool
) -> dict[str, Any]:
    """Relative rotations and places against the truth, and the scale where told."""
    rows, turns, centres = list[int](), list[Float64](), list[Float64]()
    for key in sorted(model.reg_image_ids()):
        image = model.images[key]
        turn = image.cam_from_world().rotation.matrix()
        if view := _VIEW.search(image.name):
            pitch = float(view[2].replace("_", "+"))
            turn = View(float(view[1]), pitch).rig_from_view @ turn
        rows.append(_row_of(image.name))
        turns.append(turn)
        centres.append(image.projection_center())
    # the world's own turn, as most of them tell it
    told = np.einsum("nji,njk->nik", truth.rotations[rows], np.array(turns))
    u, _, vt = np.linalg.svd(told.sum(axis=0))
    off = truth.rotations[rows] @ (u @ vt)
    traces = np.einsum("nij,nij->n", off, np.array(turns))
    degrees = np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
    own, true = np.array(centres), truth.centres[rows]
    aligned = pycolmap.estimate_sim3d(own, true)
    moved = np.array([aligned * centre for centre in own])
    extent = float(np.linalg.norm(np.ptp(true, axis=0)))
    errors = np.linalg.norm(moved - true, axis=1)
    return {
        "registered": len(rows),
        "rotation_median_deg": float(np.median(degrees)),
        "rotation_max_deg": float(degrees.max()),
        "position_median_percent": 100 * float(np.median(errors)) / extent,
        "scale_percent": 100 * abs(1 / aligned.scale - 1) if is_metric else None,
    }


def _row_of(name: str) -> int:
    if found := _PHOTOGRAPH.search(name):
        return int(found[1])
    hours, minutes, seconds, part = map(int, _TIME.search(name).groups())  # type: ignore[union-attr]
    return round(_RATE * (3600 * hours + 60 * minutes + seconds + part / 1000))


def _line(row: dict[str, Any]) -> str:
    if row["failure"]:
        return (
            f"| {row['name']} | {row['what']} | failed | | | | {row['seconds']:.0f} |"
        )
    scale = row["scale_percent"]
    return " | ".join(
        [
            f"| {row['name']}",
            row["what"],
            f"{row['registered']} of {row['images']}",
            f"{row['rotation_median_deg']:.3f}, {row['rotation_max_deg']:.3f}",
            f"{row['position_median_percent']:.3f}",
            "not told" if scale is None else f"{scale:.2f}",
            f"{row['seconds']:.0f} |",
        ]
    )


def _page(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(
        [
            "# Drones and 360° cameras",
            "",
            "`make bench-captures` renders small captures of the courtyard, whose poses"
            " are therefore known,",
            "and reconstructs each by the command, recipe `sift`. Rotations of the"
            " dataset are off by so many",
            "degrees (median, most), places by so many per cent of the walk (median),"
            " after alignment; the",
            "scale, where the capture tells it, by so many per cent without. Of spheres"
            " each view counts.",
            "",
            "| Capture | What it is | In the dataset | Rotations | Places | Scale |"
            " s |",
            "|---|---|---|---|---|---|---|",
            *map(_line, rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
