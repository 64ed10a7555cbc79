"""report.html: one file that opens anywhere, without network.

The text is written here and escaped here; page.js draws the figures and the table from
data in the page. A Content-Security-Policy forbids every request.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from plotly.offline import get_plotlyjs

from sfmprep.capture.image_set import ImageSet
from sfmprep.files import write_text
from sfmprep.report.pictures import draw_keypoints, draw_matches
from sfmprep.report.scene import scene_data
from sfmprep.report.schema import Finding, ImageReport, Report, Status, ViewPair
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Float32

_MAX_PAIRS_DRAWN = 6
_MAX_CONTRADICTIONS_DRAWN = 4
_MAX_THUMBNAILS = 24
_MAX_LEFT_OUT = 300  # the table below has them all
_MAX_CAMERAS = 6
_MAX_MATRIX = 150  # rows of the view graph's matrix; more images share rows

STATUS_LABELS: dict[Status, str] = {
    "registered": "in the dataset",
    "outlier": "left out: pose not supported",
    "unreadable": "unreadable",
    "too_few_features": "too few features",
    "no_match": "matches no other",
    "not_connected": "not connected",
    "not_registered": "no pose found",
    "not_mapped": "not mapped",
}
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline' 'unsafe-eval'"  # plotly compiles its shaders' code
)


def write_page(
    path: Path,
    report: Report,
    images: ImageSet,
    *,
    model: pycolmap.Reconstruction | None,
    features: FeatureStore | None,
    database: Path | None,
) -> None:
    """Writes a report as one HTML file, at most about 8 MB whatever the capture.

    Args:
        path: The file; it is replaced.
        report: What to show.
        images: The capture; some photographs are read for thumbnails.
        model: For the 3D view, in the world frame of the dataset where `report.world`
            is given, else in any frame (it is levelled by the cameras). None: no view.
        features: Keypoints to draw on images that were left out; None: none.
        database: Matches to draw on the weakest links; None: none.

    Raises:
        StoreError: a store is damaged.
        OSError: `path` cannot be written.
    """
    data: dict[str, Any] = {
        "statuses": STATUS_LABELS,
        "images": _image_rows(report.images),
        "cameras": [
            camera.model_dump(include={"camera_id", "width", "height", "residuals"})
            for camera in sorted(report.cameras, key=lambda c: -c.num_images)
        ][:_MAX_CAMERAS],
        "histograms": _histograms(report),
        "matrix": _matrix(report),
        "scene": None,
    }
    if model is not None and model.num_reg_images():
        data["scene"] = scene_data(
            model,
            images,
            level=report.world is None,
            outliers={i.name for i in report.images if i.status == "outlier"},
        )
    sections = [
        *_head(report),
        *_findings(report.warnings),
        *_left_out(report, images, features),
        *_scene(report, data["scene"]),
        *_links(report, images, database),
        *_graph(report),
        *_quality(report),
        *_table(report),
        *_seconds(report),
    ]
    resources = importlib.resources.files("sfmprep.report")
    title = f"{report.capture.folder}: sfmprep report"
    # in JSON a "<" can be spelled so that no name ends the script
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{(resources / "page.css").read_text("utf-8")}</style>
</head><body>
<main>{"".join(sections)}</main>
<script>{get_plotlyjs()}</script>
<script type="application/json" id="data">{embedded}</script>
<script>{(resources / "page.js").read_text("utf-8")}</script>
</body></html>
"""
    write_text(path, page)


def _head(report: Report) -> Iterator[str]:
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
    tiles.append((_duration(sum(report.seconds.values())), "this run"))
    yield '<ul class="tiles">'
    for number, text in tiles:
        yield f"<li><b>{escape(number)}</b><span>{escape(text)}</span></li>"
    yield "</ul>"
    sizes = ", ".join(
        f"{s.num_images} of {s.width} × {s.height}" for s in capture.sizes[:3]
    ) + (f" and {len(capture.sizes) - 3} more sizes" if len(capture.sizes) > 3 else "")
    facts = [f"{sizes} pixels", f"{capture.num_bytes / 1e6:,.0f} MB"]
    facts += capture.devices[:3]
    facts += [f"features: {report.frontend}", f"recipe: {report.recipe}"]
    if report.world and isinstance(report.world.get("up"), str):
        facts.append(f"up: {report.world['up']}")
    yield f'<p class="facts">{escape(" · ".join(facts))}</p>'


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield "<section><h2>What to look at</h2>"
    for finding in findings:
        yield (
            f'<div class="finding"><p><b>{escape(finding.text)}</b></p>'
            f"<p>{escape(finding.advice)}</p>"
        )
        if finding.images:
            more = " …" if len(finding.images) == 10 else ""
            yield f'<p class="names">{escape(", ".join(finding.images))}{more}</p>'
        yield "</div>"
    yield "</section>"


def _left_out(
    report: Report, images: ImageSet, features: FeatureStore | None
) -> Iterator[str]:
    out = [image for image in report.images if image.status != "registered"]
    if not out:
        return
    yield f"<section><h2>Left out: {_count(len(out), 'photograph')}, and why</h2>"
    if features is not None:
        yield '<p class="hint">Dots are the keypoints that were found.</p>'
    yield '<div class="left-out">'
    for number, image in enumerate(out[:_MAX_LEFT_OUT]):
        picture = None
        if number < _MAX_THUMBNAILS:
            known = features is not None and image.name in features
            xy: Float32 = np.empty((0, 2), np.float32)
            if features is not None and known:
                xy = features.get(image.name).xy
            picture = draw_keypoints(images, image.name, xy)
        yield (
            f'<div class="card">{picture or ""}<p><b>{escape(image.name)}</b>'
            f' <span class="status">{escape(STATUS_LABELS[image.status])}</span></p>'
            f"<p>{escape(image.reason)}</p></div>"
        )
    yield "</div>"
    if len(out) > _MAX_LEFT_OUT:
        yield f"<p>{len(out) - _MAX_LEFT_OUT} more are in the table below.</p>"
    yield "</section>"


def _scene(report: Report, scene: dict[str, Any] | None) -> Iterator[str]:
    if scene is None:
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
        '<div id="scene" class="figure tall"></div></section>'
    )


def _links(report: Report, images: ImageSet, database: Path | None) -> Iterator[str]:
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


def _graph(report: Report) -> Iterator[str]:
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


def _quality(report: Report) -> Iterator[str]:
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
    for number, camera in enumerate(cameras[:_MAX_CAMERAS]):
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
    if len(cameras) > _MAX_CAMERAS:
        yield f"<p>{len(cameras) - _MAX_CAMERAS} more cameras are in report.json.</p>"
    yield "</section>"


def _table(report: Report) -> Iterator[str]:
    yield (
        "<section><h2>All photographs</h2>"
        '<p class="controls"><input id="search" type="search" placeholder="search a'
        ' name or a reason" aria-label="search"><span id="shown"></span></p>'
        '<div class="scroll"><table id="table"><thead></thead><tbody></tbody></table>'
        '</div><p><button id="more">Show more</button></p></section>'
    )


def _seconds(report: Report) -> Iterator[str]:
    if not report.seconds:
        return
    longest = max(*report.seconds.values(), 1e-9)
    yield '<section><h2>Time</h2><table class="bars">'
    for stage, seconds in report.seconds.items():
        yield (
            f"<tr><th>{escape(stage)}</th><td>{_duration(seconds)}</td>"
            f'<td><i style="width:{seconds / longest:.1%}"></i></td></tr>'
        )
    yield "</table></section>"


def _image_rows(images: Sequence[ImageReport]) -> list[list[Any]]:
    """The columns of page.js, in its order."""
    return [
        [
            image.name,
            image.status,
            image.num_keypoints,
            image.num_pairs,
            image.num_inliers,
            image.num_points if image.model == 0 else None,
            _rounded(image.mean_error_px),
            _rounded(image.coverage),
            _rounded(image.rotation_stddev_deg),
            _rounded(image.position_stddev),
            image.reason,
        ]
        for image in images
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _histograms(report: Report) -> dict[str, Any]:
    found = {
        "errors": report.residuals and report.residuals.histogram,
        "tracks": report.track_lengths,
        "angles": report.angles_deg,
    }
    return {key: h.model_dump() for key, h in found.items() if h}


def _matrix(report: Report) -> dict[str, Any] | None:
    """Matches between images, or between blocks of neighbours where there are many."""
    graph = report.view_graph
    if graph is None or not graph.edges:
        return None
    block = -(-len(report.images) // _MAX_MATRIX)
    size = -(-len(report.images) // block)
    edges = np.array(graph.edges)
    cells = np.zeros((size, size), np.int64)
    rows, columns = edges[:, 0] // block, edges[:, 1] // block
    np.maximum.at(cells, (rows, columns), edges[:, 2])
    cells = np.maximum(cells, cells.T)
    firsts = report.images[::block]
    return {
        "matches": cells.tolist(),
        "labels": [image.name for image in firsts],
        "block": block,
    }


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
