"""report.html: one file that opens anywhere, without network.

The text is written and escaped in sections.py; page.js draws the figures and the table
from data in the page. A Content-Security-Policy forbids every request.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from plotly.offline import get_plotlyjs

from sfmprep.capture.image_set import ImageSet
from sfmprep.files import write_text
from sfmprep.report import sections
from sfmprep.report.scene import scene_data
from sfmprep.report.schema import ImageReport, Report
from sfmprep.stores.tables import FeatureStore

_MAX_MATRIX = 150  # rows of the view graph's matrix; more images share rows

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
        "statuses": sections.STATUS_LABELS,
        "images": _image_rows(report.images),
        "cameras": [
            camera.model_dump(include={"camera_id", "width", "height", "residuals"})
            for camera in sorted(report.cameras, key=lambda c: -c.num_images)
        ][: sections.MAX_CAMERAS],
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
    parts = [
        *sections.head(report),
        *sections.findings(report),
        *sections.next_steps(report),
        *sections.other_models(report, path.resolve().parent),
        *sections.scene(report, data["scene"]),
        *sections.left_out(report, images, features),
        *sections.registered(report, images),
        *sections.films(report),
        *sections.links(report, images, database),
        *sections.graph(report),
        *sections.quality(report),
        *sections.table(report),
        *sections.how_it_was_made(report),
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
<main>{"".join(parts)}</main>
<script>{get_plotlyjs()}</script>
<script type="application/json" id="data">{embedded}</script>
<script>{(resources / "page.js").read_text("utf-8")}</script>
</body></html>
"""
    write_text(path, page)


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
