"""How many of the views that truly overlap are found by likeness, on real scenes.

    python -m tests.bench.retrieval                     (or: make bench-retrieval)
    python -m tests.bench.retrieval --scenes fox --max-size 640

Needs the scenes of `../shared`. What overlaps is known from their poses alone. The page
`examples/retrieval.md` is written from it.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import sfmprep as sp
from sfmprep.pairing.retrieval import most_similar
from sfmprep.types import Float64
from tests.bench.scoreboard.scenes import Prepared, prepare, shared
from tests.bench.shared import scene_options, use_shared_weights

SCENES = ("fox", "buddha67", "beer-video71")
_GRID = 9  # rays a side
_SHARED = 0.5  # of the rays of either image, that the other sees
_MAX_TURN_DEG = 45.0  # between optical axes: from there on matching is another matter
_COUNTS = (5, 10, 20)


def main() -> None:
    """Reads the command line."""
    options = scene_options(
        __doc__, SCENES, max_size=640, page="retrieval"
    ).parse_args()
    use_shared_weights()
    kinds = {"SIFT": sp.Sift(max_keypoints=2048), "our own features": sp.Compact()}
    lines = []
    for name in options.scenes:
        scene = prepare(shared(name), options.scratch / "scenes", options.max_size)
        overlapping = overlaps(scene.reference or {})
        images = sp.scan(scene.images)
        for kind, config in kinds.items():
            features = sp.extract(images, config)
            names = [n for n in images.names if n in overlapping]
            found = most_similar(
                *(names, features, names, features), count=max(_COUNTS) + 1
            )
            lines.append(_line(scene, kind, overlapping, found))
            print(lines[-1], flush=True)
    options.page.write_text(_page(lines, options.max_size), "utf-8")
    shutil.rmtree(options.scratch / "scenes", ignore_errors=True)


def overlaps(reference: Mapping[str, Any]) -> dict[str, list[str]]:
    """The images that truly overlap with each, by the poses of `reference.json`.

    The scene is taken to be as far away as the point that all cameras look at: where a
    grid of rays of one image is at that distance has to be in the other, for half of
    them, and the other way round.
    """
    names = sorted(reference)
    poses = [_Pose(reference[name]) for name in names]
    middle = _looked_at(poses)
    found: dict[str, list[str]] = {name: [] for name in names}
    for (name0, pose0), (name1, pose1) in itertools.combinations(
        zip(names, poses, strict=True), 2
    ):
        cosine = float(pose0.axis @ pose1.axis)
        if cosine < np.cos(np.radians(_MAX_TURN_DEG)):
            continue
        seen = [
            one.sees(other.points(middle)).mean()
            for one, other in ((pose0, pose1), (pose1, pose0))
        ]
        if min(seen) >= _SHARED:
            found[name0].append(name1)
            found[name1].append(name0)
    return found


class _Pose:
    """A camera without lens distortion."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._rotation = np.array(entry["R"], np.float64)
        self._intrinsics = np.array(entry["K"], np.float64)
        self._size = entry["width"], entry["height"]
        self.centre: Float64 = -self._rotation.T @ np.array(entry["t"], np.float64)
        self.axis: Float64 = self._rotation[2]

    def points(self, middle: Float64) -> Float64:
        """Points [N, 3] of the world on rays of a grid, as far away as the middle."""
        sides = [(np.arange(_GRID) + 0.5) / _GRID * side for side in self._size]
        x, y = (each.ravel() for each in np.meshgrid(*sides))
        pixels = np.stack([x, y, np.ones_like(x)])
        rays = self._rotation.T @ np.linalg.solve(self._intrinsics, pixels)
        depth = float((middle - self.centre) @ self.axis)
        return np.asarray(self.centre + depth * rays.T, np.float64)

    def sees(self, points: Float64) -> Float64:
        """1 for each point [N] in the picture, else 0."""
        local = (points - self.centre) @ self._rotation.T
        x, y = (local / local[:, 2:] @ self._intrinsics.T)[:, :2].T
        width, height = self._size
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return np.asarray(inside & (local[:, 2] > 0), np.float64)


def _looked_at(poses: Sequence[_Pose]) -> Float64:
    """The point nearest to all optical axes, by least squares."""
    across = [np.eye(3) - np.outer(pose.axis, pose.axis) for pose in poses]
    right = [a @ pose.centre for a, pose in zip(across, poses, strict=True)]
    return np.asarray(np.linalg.solve(np.sum(across, 0), np.sum(right, 0)), np.float64)


def recall(
    overlapping: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[str]],
    count: int,
) -> float:
    """The mean share, 0..1, of overlapping images among so many that are found.

    Where more overlap than are asked for, it is the share of what is asked for.

    Args:
        overlapping: By image; images without any do not count.
        found: By image, most similar first; the image itself does not count.
        count: How many.
    """
    shares = []
    for name, wanted in overlapping.items():
        if wanted:
            best = [other for other in found[name] if other != name][:count]
            shares.append(len(set(best) & set(wanted)) / min(count, len(wanted)))
    return float(np.mean(shares))


def _line(
    scene: Prepared,
    kind: str,
    overlapping: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[str]],
) -> str:
    usual = np.median([len(others) for others in overlapping.values()])
    cells = [f"{100 * recall(overlapping, found, k):.1f}" for k in _COUNTS]
    chance = 100 * usual / (len(overlapping) - 1)
    return " | ".join(
        [
            f"| {scene.scene.name}",
            str(len(overlapping)),
            f"{usual:.0f} ({chance:.0f} %)",
            kind,
            *cells[:-1],
            f"{cells[-1]} |",
        ]
    )


def _page(lines: Sequence[str], max_size: int) -> str:
    head = " | ".join(f"Recall at {count}" for count in _COUNTS)
    return "\n".join(
        [
            "# Pairs by likeness",
            "",
            "`make bench-retrieval`: photographs of real scenes at"
            f" {max_size} pixels, paired by a VLAD of their",
            "local descriptors, which needs no weights. Which truly overlap is known"
            " from the poses alone: each",
            "sees half of what the other does at the distance of the middle of the"
            " scene, and their axes are",
            f"within {_MAX_TURN_DEG:.0f} degrees. Recall at k is the mean share of"
            " overlapping images among the k most",
            "similar, of as many as k can hold, in per cent; in brackets their share of"
            " the others, which is",
            "what chance gives where k is no more than they are. The size of the"
            " vocabulary was chosen on",
            "these scenes. The networks (EigenPlaces, MegaLoc, NetVLAD) are not in this"
            " table: it was made",
            "where their weights could not be had.",
            "",
            f"| Scene | Images | overlapping, of each | Features | {head} |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
