"""What the sections of the page show, chosen and in words; page.html has the text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from sfmprep.capture.developed import Film
from sfmprep.report import added
from sfmprep.report.given_poses import moved
from sfmprep.report.schema import ImageReport, LookAlike, Report, Status, ViewPair

_MAX_PAIRS_DRAWN = 6
_MAX_CONTRADICTIONS_DRAWN = 4
_MAX_REGISTERED_DRAWN = 24
_MAX_STRIP = 12  # frames of a film

STATUS_LABELS: dict[Status, str] = {
    "registered": "in the dataset",
    "outlier": "left out: pose not supported",
    "unreadable": "cannot be used",
    "too_few_features": "too few features",
    "no_match": "matches no other",
    "not_connected": "not connected",
    "not_registered": "no pose found",
    "not_mapped": "not mapped",
}
WHAT_TO_DO: dict[Status, str] = {
    "registered": "",
    "outlier": "They have a pose, but too little supports it; one wrong pose harms a"
    " whole training. Nothing needs to be done.",
    "unreadable": "The files are damaged, of a kind that cannot be read, or have names"
    " that cannot be written down. Copy what is damaged from the camera again.",
    "too_few_features": "They are blurred, dark or blank. Take them again, sharper.",
    "no_match": "They show what no other photograph shows, or are blurred. Take"
    " photographs that lead to them, a small step apart.",
    "not_connected": "They match each other, but nothing ties them to the main model."
    " Take photographs that lead from one part to the other.",
    "not_registered": "Too few of their points are known, or these do not agree. Take"
    " more photographs near them.",
    "not_mapped": "No poses were asked for.",
}

# Title, hint, and pairs with what is said of each
PairSection = tuple[str, str, list[tuple[ViewPair, str]]]


def facts(report: Report) -> str:
    """What went in and what was used, on a line."""
    capture = report.capture
    sizes = ", ".join(
        f"{s.num_images:,} of {s.width} × {s.height}" for s in capture.sizes[:3]
    ) + (f" and {len(capture.sizes) - 3} more sizes" if len(capture.sizes) > 3 else "")
    listed = [f"{sizes} pixels", file_size(capture.num_bytes), *capture.devices[:3]]
    listed += [f"features: {report.frontend}", f"recipe: {report.recipe}"]
    if report.result:
        listed.append(f"mapping: {report.mapper}")
    if report.given_poses:
        listed.append(moved(report.given_poses))
    if report.added and (told := added.moved(report.added)):
        listed.append(told)
    if report.world and isinstance(report.world.get("up"), str):
        listed.append(f"up: {report.world['up']}")
    return " · ".join(listed)


def left_out(report: Report) -> list[tuple[Status, list[ImageReport]]]:
    """Photographs that are in no dataset, by cause, the most frequent one first."""
    elsewhere = {other.number for other in report.other_models if other.folder}
    by_cause: defaultdict[Status, list[ImageReport]] = defaultdict(list)
    for image in report.images:
        if image.status != "registered" and image.model not in elsewhere:
            by_cause[image.status].append(image)
    return sorted(by_cause.items(), key=lambda item: -len(item[1]))


def shown(report: Report) -> list[ImageReport]:
    """Some photographs of the dataset, evenly chosen."""
    kept = [image for image in report.images if image.status == "registered"]
    rows = np.linspace(0, len(kept) - 1, min(len(kept), _MAX_REGISTERED_DRAWN))
    return [kept[row] for row in rows.astype(int)]


def strip(film: Film) -> list[tuple[str, float, float]]:
    """Some frames of a film that are used, evenly chosen, in the order of time.

    Returns:
        Names of photographs, of a film of spheres those of its first view; seconds; and
        sharpness against the median of the film.
    """
    rows = np.linspace(0, len(film.frames) - 1, min(len(film.frames), _MAX_STRIP))
    curve = np.array(film.curve or [(0.0, 1.0)], np.float64)
    return [
        (
            next(iter(film.views), "") + film.frames[row],
            film.times[row],
            float(np.interp(film.times[row], *curve.T)),
        )
        for row in rows.astype(int)
    ]


def links(report: Report) -> Iterator[PairSection]:
    """The weakest links, and pairs that show two places or contradict the poses."""
    split = [k for k in report.weak_links if k.num_images > 2]
    weakest = [*split[:2], *report.weak_links]
    weakest = list({(k.pair.name0, k.pair.name1): k for k in weakest}.values())
    yield (
        "The weakest links",
        "Where the capture is held together by the fewest matches. More photographs"
        " here make the result safer.",
        [
            (
                link.pair,
                f"{count(link.num_matches, 'match', 'matches')} in"
                f" {count(link.num_pairs, 'pair')} hold"
                f" {count(link.num_images, 'photograph')} to all others; the strongest"
                " pair, drawn here, has",
            )
            for link in weakest[:_MAX_PAIRS_DRAWN]
        ],
    )
    yield (
        "Models that stay apart",
        "Pairs join them to the largest model, but these are too few or do not agree on"
        " how one lies in the other. Photographs between the two drawn here help most.",
        [
            (
                other.strongest_link,
                f"{count(other.num_links, 'pair')} between the largest model and model"
                f" {other.number}, of {count(other.num_images, 'photograph')}; the"
                " strongest has",
            )
            for other in report.other_models[:_MAX_CONTRADICTIONS_DRAWN]
            if other.strongest_link is not None
        ],
    )
    if (trust := report.consistency) is not None:
        yield (
            "Places that lie on each other",
            "These fit the poses, but much of what each shows is missing in the other:"
            " the poses of one place are wrong.",
            _look_alikes(trust.overlaid),
        )
        yield (
            "Neighbours in the row that stand apart",
            "Taken one after the other, these match well, but the poses put them where"
            " they cannot.",
            [
                (pair, "By the poses they do not see the same; the pair has")
                for pair in trust.broken[:_MAX_CONTRADICTIONS_DRAWN]
            ],
        )
        yield (
            "Pairs that were left out",
            "These match, but show places that look alike, not the same place; they"
            " were not mapped with.",
            _look_alikes(trust.left_out),
        )
    yield (
        "Pairs that contradict the poses",
        "These match well, but cannot both be right with the poses: things that look"
        " alike, or a wrong pose.",
        [
            (c.pair, f"Only {c.share_fitting:.0%} of its matches fit the poses; it has")
            for c in report.contradictions[:_MAX_CONTRADICTIONS_DRAWN]
        ],
    )


def _look_alikes(pairs: Sequence[LookAlike]) -> list[tuple[ViewPair, str]]:
    found = []
    for each in pairs[:_MAX_CONTRADICTIONS_DRAWN]:
        missing = "It goes with others of these"
        if each.absent is not None:
            missing = f"{each.absent:.0%} of what they should share is missing"
        if each.loop_deg is not None:
            missing = f"By a loop of other pairs it is off by {each.loop_deg:.0f}°"
        found.append((each.pair, f"{missing} (certainty {each.certainty:.2f}); it has"))
    return found


def file_size(number: int) -> str:
    """A number of bytes for people, such as 2.5 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.0f} kB"


def duration(seconds: float) -> str:
    """A time for people, such as 12 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things, such as `1,200 points`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
