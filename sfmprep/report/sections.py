"""The sections of the page: text, pictures and places for figures, as escaped HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sfmprep.capture.image_set import ImageSet
from sfmprep.report.pictures import draw_keypoints, draw_matches
from sfmprep.report.schema import (
    Consistency,
    FilmReport,
    ImageReport,
    LookAlike,
    Report,
    Status,
    ViewPair,
)
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Float32

MAX_CAMERAS = 6
_MAX_FILMS = 20
_MAX_PAIRS_DRAWN = 6
_MAX_CONTRADICTIONS_DRAWN = 4
_MAX_DRAWN_OF_A_CAUSE = 4
_MAX_LISTED_OF_A_CAUSE = 300
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
_WHAT_TO_DO: dict[Status, str] = {
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


def head(report: Report) -> Iterator[str]:
    """The verdict, and the figures that matter."""
    result, capture = report.result, report.capture
    yield (
        f'<header><p class="kicker">sfmprep {escape(report.sfmprep_version)} report'
        f" · {escape(capture.folder)}</p>"
        f'<h1 class="{report.grade}">{escape(report.verdict)}</h1></header>'
    )
    tiles: list[tuple[str, str]] = []
    if result:
        tiles = [
            (
                f"{result.num_dataset:,} of {len(report.images):,}",
                "photographs in the dataset",
            ),
            (
                f"{result.num_dataset_points or result.num_points:,}",
                "3D points to start from" if result.num_dataset_points else "3D points",
            ),
            (f"{result.mean_track_length:.1f}", "photographs see a point, on average"),
            (
                f"{result.median_angle_deg:.0f}°",
                "between the outer rays of a typical point",
            ),
        ]
    else:
        tiles = [(f"{len(report.images):,}", "photographs")]
    if report.residuals:
        tiles.append((f"{report.residuals.mean_px:.2f} px", "mean reprojection error"))
    if report.view_graph:
        tiles.append((f"{report.view_graph.num_pairs:,}", "pairs verified"))
    if report.seconds:
        tiles.append((_duration(sum(report.seconds.values())), "the last run took"))
    yield '<ul class="tiles">'
    for number, text in tiles:
        yield f"<li><b>{escape(number)}</b><span>{escape(text)}</span></li>"
    yield "</ul>"
    sizes = ", ".join(
        f"{s.num_images:,} of {s.width} × {s.height}" for s in capture.sizes[:3]
    ) + (f" and {len(capture.sizes) - 3} more sizes" if len(capture.sizes) > 3 else "")
    facts = [f"{sizes} pixels", file_size(capture.num_bytes)]
    facts += capture.devices[:3]
    facts += [f"features: {report.frontend}", f"recipe: {report.recipe}"]
    if report.world and isinstance(report.world.get("up"), str):
        facts.append(f"up: {report.world['up']}")
    yield f'<p class="facts">{escape(" · ".join(facts))}</p>'


def findings(report: Report) -> Iterator[str]:
    """What a person should look at, worst first."""
    if not report.warnings:
        return
    yield "<section><h2>What to look at</h2>"
    for finding in report.warnings:
        kind = "finding blocks" if finding.blocks_training else "finding"
        yield (
            f'<div class="{kind}"><p><b>{escape(finding.text)}</b></p>'
            f"<p>{escape(finding.advice)}</p>"
        )
        if finding.images:
            more = " …" if len(finding.images) == 10 else ""
            yield f'<p class="names">{escape(", ".join(finding.images))}{more}</p>'
        yield "</div>"
    yield "</section>"


def next_steps(report: Report) -> Iterator[str]:
    """The commands that open the dataset, or what to mend before."""
    yield "<section><h2>What to do next</h2>"
    if report.next_steps:
        hint = "One of these opens the result; they work from any folder."
        yield f'<p class="hint">{hint}</p>'
        for step in report.next_steps:
            yield f"<pre>{escape(step)}</pre>"
    else:
        blocking = [f.advice for f in report.warnings if f.blocks_training]
        advice = blocking or ["Mend what is said above."]
        yield "<ol>"
        for sentence in dict.fromkeys([*advice, "Run the same command again:"]):
            yield f"<li>{escape(sentence)}</li>"
        yield f"</ol><pre>{escape(report.command)}</pre>"
    yield "</section>"


def other_models(report: Report, out: Path) -> Iterator[str]:
    """The models beside the largest, and where their datasets are."""
    if not report.other_models:
        return
    yield (
        "<section><h2>Other models</h2>"
        '<p class="hint">Photographs that too little ties to those of the dataset. Each'
        " model has a frame of its own.</p><ul>"
    )
    for other in report.other_models:
        size = (
            f"Model {other.number}: {_count(other.num_images, 'photograph')},"
            f" {_count(other.num_points, 'point')}"
        )
        where = (
            f"; its dataset is <code>{escape(str(out / other.folder))}</code>: give"
            " that path to the commands above."
            if other.folder
            else f"; it has no dataset: {escape(other.reason)}."
        )
        yield f"<li>{size}{where}</li>"
    yield "</ul></section>"


def left_out(
    report: Report, images: ImageSet, features: FeatureStore | None
) -> Iterator[str]:
    """Photographs that are not in the dataset, by cause, some of each drawn."""
    elsewhere = {other.number for other in report.other_models if other.folder}
    images_out = [
        image
        for image in report.images
        if image.status != "registered" and image.model not in elsewhere
    ]
    counts = Counter(image.status for image in images_out)
    if not counts:
        return
    many = _count(counts.total(), "photograph")
    yield f"<section><h2>Left out: {many}, and why</h2>"
    if features is not None:
        yield '<p class="hint">Dots are the keypoints that were found.</p>'
    for status, count in counts.most_common():
        of_cause = [image for image in images_out if image.status == status]
        yield (
            f"<h3>{escape(STATUS_LABELS[status])}: {_count(count, 'photograph')}</h3>"
            f'<p class="hint">{escape(_WHAT_TO_DO[status])}</p><div class="cards">'
        )
        for image in of_cause[:_MAX_DRAWN_OF_A_CAUSE]:
            yield (
                f'<div class="card">{_drawn(image, images, features)}'
                f"<p><b>{escape(image.name)}</b></p><p>{escape(image.reason)}</p></div>"
            )
        yield "</div>"
        if others := of_cause[_MAX_DRAWN_OF_A_CAUSE:]:
            yield f"<details><summary>{len(others):,} more</summary><ul>"
            for image in others[:_MAX_LISTED_OF_A_CAUSE]:
                yield (f"<li><b>{escape(image.name)}</b>: {escape(image.reason)}</li>")
            yield "</ul>"
            if len(others) > _MAX_LISTED_OF_A_CAUSE:
                rest = len(others) - _MAX_LISTED_OF_A_CAUSE
                yield f"<p>{rest:,} more are in the table below.</p>"
            yield "</details>"
    yield "</section>"


def _drawn(image: ImageReport, images: ImageSet, features: FeatureStore | None) -> str:
    xy: Float32 = np.empty((0, 2), np.float32)
    if features is not None and image.name in features:
        xy = features.get(image.name).xy
    return draw_keypoints(images, image.name, xy) or ""


def registered(report: Report, images: ImageSet) -> Iterator[str]:
    """A contact sheet of the dataset, evenly chosen."""
    kept = [image for image in report.images if image.status == "registered"]
    if not kept:
        return
    rows = np.linspace(0, len(kept) - 1, min(len(kept), _MAX_REGISTERED_DRAWN))
    of = "" if len(rows) == len(kept) else f", {len(rows)} of {len(kept):,}"
    yield f'<section><h2>In the dataset{of}</h2><div class="sheet">'
    for row in rows.astype(int):
        image = kept[row]
        yield (
            f"<figure>{_drawn(image, images, None)}<figcaption>{escape(image.name)}:"
            f" {_count(image.num_points, 'point')}</figcaption></figure>"
        )
    yield "</div></section>"


def films(report: Report) -> Iterator[str]:
    """Sharpness over time, and which frames were taken."""
    if not report.capture.films:
        return
    yield "<section><h2>Films</h2>"
    for film in report.capture.films[:_MAX_FILMS]:
        cuts = f", {_count(film.num_cuts, 'cut')}" if film.num_cuts else ""
        blurred = (
            f"; {film.num_blurred:,} are blurred, of which {film.num_blurred_used:,}"
            " are used"
        )
        yield (
            f"<h3>{escape(film.name)}</h3><p>{len(film.times):,} of"
            f" {_count(film.num_frames, 'frame')} in {_duration(film.seconds)} are"
            f" used{cuts}{blurred if film.num_blurred else ''}.</p>{_strip(film)}"
        )
    yield (
        '<p class="hint">The line is sharpness over time; the marks below it are the'
        " frames that are used.</p></section>"
    )


def _strip(film: FilmReport) -> str:
    """An SVG of the sharpness of a film and its frames."""
    width, height = 1000, 60
    length = max(film.seconds, 1e-9)
    line = " ".join(
        f"{seconds / length * width:.0f},{height * (1 - min(value, 2) / 2):.0f}"
        for seconds, value in film.curve
    )
    marks = "".join(
        f"M{seconds / length * width:.1f} {height + 4}v12" for seconds in film.times
    )
    return (
        f'<svg viewBox="0 0 {width} {height + 18}" role="img"'
        f' aria-label="sharpness of {escape(film.name)}">'
        f'<polyline points="{line}" fill="none" stroke="currentColor"/>'
        f'<path d="{marks}" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def scene(report: Report, data: dict[str, Any] | None) -> Iterator[str]:
    """The place of the 3D view."""
    if data is None:
        return
    frame = (
        "z is up, as in the dataset"
        if report.world is not None
        else "turned so that the photographs are upright"
    )
    yield (
        "<section><h2>Cameras and points</h2>"
        f'<p class="hint">Drag to turn, scroll to zoom; {frame}. Surfaces that are'
        " there twice, or cameras far from their neighbours, mean wrong poses.</p>"
        '<div id="scene" class="figure tall" role="img"'
        ' aria-label="3D view of cameras and points"></div></section>'
    )


def links(report: Report, images: ImageSet, database: Path | None) -> Iterator[str]:
    """The weakest links and the pairs that contradict, drawn."""
    if database is None:
        return
    split = [k for k in report.weak_links if k.num_images > 2]
    links = [*split[:2], *report.weak_links]
    links = list({(k.pair.name0, k.pair.name1): k for k in links}.values())
    drawn: list[tuple[ViewPair, str]] = []
    for link in links[:_MAX_PAIRS_DRAWN]:
        hold = (
            f"{_count(link.num_matches, 'match', 'matches')} in"
            f" {_count(link.num_pairs, 'pair')} hold"
            f" {_count(link.num_images, 'photograph')} to all others"
        )
        drawn.append((link.pair, f"{hold}; the strongest pair, drawn here, has"))
    yield from _pair_section(
        "The weakest links",
        "Where the capture is held together by the fewest matches. More photographs"
        " here make the result safer.",
        drawn,
        images,
        database,
    )
    for title, hint, pairs in _look_alikes(report.consistency):
        yield from _pair_section(title, hint, pairs, images, database)
    contradicting = [
        (c.pair, f"Only {c.share_fitting:.0%} of its matches fit the poses; it has")
        for c in report.contradictions[:_MAX_CONTRADICTIONS_DRAWN]
    ]
    yield from _pair_section(
        "Pairs that contradict the poses",
        "These match well, but cannot both be right with the poses: things that look"
        " alike, or a wrong pose.",
        contradicting,
        images,
        database,
    )


def _look_alikes(
    consistency: Consistency | None,
) -> Iterator[tuple[str, str, list[tuple[ViewPair, str]]]]:
    """Titles, hints and pairs of two sections; none without a model."""
    if consistency is None:
        return
    for title, hint, pairs in (
        (
            "Places that lie on each other",
            "These fit the poses, but much of what each shows is missing in the other:"
            " the poses of one place are wrong.",
            consistency.overlaid,
        ),
        (
            "Pairs that were left out",
            "These match, but show places that look alike, not the same place; they"
            " were not mapped with.",
            consistency.left_out,
        ),
    ):
        yield (
            title,
            hint,
            [
                (p.pair, f"{_missing(p)} (certainty {p.certainty:.2f}); it has")
                for p in pairs[:_MAX_CONTRADICTIONS_DRAWN]
            ],
        )


def _missing(pair: LookAlike) -> str:
    if pair.absent is None:
        return "It goes with others of these"
    return f"{pair.absent:.0%} of what they should share is missing"


def _pair_section(
    title: str,
    hint: str,
    pairs: Sequence[tuple[ViewPair, str]],
    images: ImageSet,
    database: Path,
) -> Iterator[str]:
    if not pairs:
        return
    yield f'<section><h2>{title}</h2><p class="hint">{hint}</p><div class="pairs">'
    for pair, text in pairs:
        picture = draw_matches(images, pair, database)
        yield (
            f"<figure>{picture or ''}<figcaption><b>{escape(pair.name0)}</b> and"
            f" <b>{escape(pair.name1)}</b>: {escape(text)} {pair.num_inliers:,}."
            "</figcaption></figure>"
        )
    yield "</div></section>"


def graph(report: Report) -> Iterator[str]:
    """The place of the matrix of matches."""
    graph = report.view_graph
    if graph is None or not graph.edges:
        return
    shown = (
        ""
        if graph.max_edges_per_image is None
        else f" Only the {graph.max_edges_per_image} strongest pairs of each are shown."
    )
    yield (
        "<section><h2>Which photographs match</h2>"
        '<p class="hint">Photographs in the order of their names, against each other;'
        " the brighter, the more matches. A film or a walk is a band along the"
        f" diagonal; spots away from it are places seen again.{shown}</p>"
        '<div id="matrix" class="figure"></div></section>'
    )


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
            '<th scope="col">verified after</th></tr></thead><tbody>'
        )
        for rung in report.rungs:
            yield (
                f'<tr><th scope="row">{escape(rung.name)}</th>'
                f"<td>{rung.num_pairs:,}</td><td>{rung.num_verified_before:,}</td>"
                f"<td>{rung.num_verified:,}</td></tr>"
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


def file_size(number: int) -> str:
    """A number of bytes for people, such as 2.5 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.0f} kB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
