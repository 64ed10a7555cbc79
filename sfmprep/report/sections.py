"""What the sections of the page show, chosen and in words; page.html has the text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from sfmprep.report.schema import ImageReport, LookAlike, Report, Status, ViewPair

_MAX_PAIRS_DRAWN = 6
_MAX_CONTRADICTIONS_DRAWN = 4
_MAX_REGISTERED_DRAWN = 24

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
    if (trust := report.consistency) is not None:
        yield (
            "Places that lie on each other",
            "These fit the poses, but much of what each shows is missing in the other:"
            " the poses of one place are wrong.",
            _look_alikes(trust.overlaid),
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


<<<<<<< HEAD
def _look_alikes(pairs: Sequence[LookAlike]) -> list[tuple[ViewPair, str]]:
    found = []
    for each in pairs[:_MAX_CONTRADICTIONS_DRAWN]:
        missing = "It goes with others of these"
        if each.absent is not None:
            missing = f"{each.absent:.0%} of what they should share is missing"
        found.append((each.pair, f"{missing} (certainty {each.certainty:.2f}); it has"))
    return found
=======
def quality(report: Report) -> Iterator[str]:
    """The places of histograms and residuals."""
    if report.residuals is None:
        return
    yield '<section><h2>Accuracy</h2><div class="columns">'
    for key in ("errors", "tracks", "angles"):
        yield f'<div id="{key}" class="figure short"></div>'
    yield (
        "</div><h3>Left over across the image</h3>"
        '<p class="hint">Mean residual in each part of the image, arrows enlarged. No'
        " pattern, and less than 0.5 px, is good; rings or whirls are lens distortion"
        ' that the camera model lacks.</p><div class="columns">'
    )
    cameras = sorted(report.cameras, key=lambda c: -c.num_images)
    for number, camera in enumerate(cameras[:MAX_CAMERAS]):
        x, y = camera.principal_point_offset_px
        yield (
            f'<figure><div id="field{number}" class="figure"></div><figcaption>Camera'
            f" {camera.camera_id}, {camera.model}, {camera.num_images} photographs:"
            f" focal length {camera.focal_length_px:,.1f} px"
            f" ({camera.field_of_view_deg:.0f}° wide), axis"
            f" ({x:+.1f}, {y:+.1f}) px from the middle, left over"
            f" {camera.residuals.leftover_px:.2f} px.</figcaption></figure>"
        )
    yield "</div>"
    if len(cameras) > MAX_CAMERAS:
        yield f"<p>{len(cameras) - MAX_CAMERAS} more cameras are in report.json.</p>"
    yield "</section>"


def table(report: Report) -> Iterator[str]:
    """The place of the table of all photographs, which page.js fills."""
    yield (
        '<section><h2 id="all">All photographs</h2>'
        '<p class="controls"><input id="search" type="search" placeholder="search a'
        ' name or a reason" aria-label="search a name or a reason"'
        ' aria-controls="table"><span id="shown" role="status"></span></p>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="all">'
        '<table id="table" aria-labelledby="all"><thead></thead><tbody></tbody></table>'
        '</div><p><button id="more" type="button">Show more</button></p></section>'
    )


def how_it_was_made(report: Report) -> Iterator[str]:
    """The command, the time of each stage, versions and settings."""
    yield (f"<section><h2>How it was made</h2><pre>{escape(report.command)}</pre>")
    if report.rungs:
        yield (
            '<h3>Matching</h3><table><thead><tr><th scope="col">matcher</th>'
            '<th scope="col">pairs tried</th><th scope="col">verified before</th>'
            '<th scope="col">verified after</th><th scope="col">time</th>'
            '<th scope="col">no time for</th></tr></thead><tbody>'
        )
        for rung in report.rungs:
            yield (
                f'<tr><th scope="row">{escape(rung.name)}</th>'
                f"<td>{rung.num_pairs:,}</td><td>{rung.num_verified_before:,}</td>"
                f"<td>{rung.num_verified:,}</td>"
                f"<td>{_duration(rung.seconds) if rung.seconds else ''}</td>"
                f"<td>{rung.num_left_out or ''}</td></tr>"
            )
        yield "</tbody></table>"
    if report.seconds:
        longest = max(*report.seconds.values(), 1e-9)
        yield '<h3>Time of the last run</h3><table class="bars">'
        for stage, seconds in report.seconds.items():
            yield (
                f'<tr><th scope="row">{escape(stage)}</th><td>{_duration(seconds)}</td>'
                f'<td><i style="width:{seconds / longest:.1%}"></i></td></tr>'
            )
        yield "</table>"
    versions = ", ".join(f"{name} {of}" for name, of in report.versions.items())
    settings = yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True)
    yield (
        f'<h3>Versions</h3><p class="facts">{escape(versions)}</p>'
        "<details><summary>All settings</summary>"
        f"<pre>{escape(settings)}</pre></details></section>"
    )
>>>>>>> 3a9b33d (A budget of minutes for what follows the first rung)


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
