"""report.html: one file that opens anywhere, without network.

page.html has the text, in which Jinja escapes what is put in; page.js draws the figures
and the table from data in the page. A Content-Security-Policy forbids every request.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pycolmap
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sfmprep.capture.image_set import ImageSet
from sfmprep.files import write_text
from sfmprep.report import sections
from sfmprep.report.pictures import draw_keypoints, draw_matches
from sfmprep.report.scene import scene_data
from sfmprep.report.schema import ImageReport, Report, ViewPair
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Float32

_MAX_MATRIX = 150  # rows of the view graph's matrix; more images share rows

_MAX_CAMERAS = 6
_MAX_STRIPS = 5  # films of which frames are shown
_MAX_ROWS = 2000  # of the table of images


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
    cameras = sorted(report.cameras, key=lambda c: -c.num_images)[:_MAX_CAMERAS]
    data: dict[str, Any] = {
        "statuses": sections.STATUS_LABELS,
        "images": _image_rows(_some(report.images)),
        "num_images": len(report.images),
        "cameras": [
            camera.model_dump(include={"camera_id", "width", "height", "residuals"})
            for camera in cameras
        ],
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

    def drawn(name: str, with_keypoints: bool) -> Markup:
        xy: Float32 = np.empty((0, 2), np.float32)
        if with_keypoints and features is not None and name in features:
            xy = features.get(name).xy
        return Markup(draw_keypoints(images, name, xy) or "")

    def matches(pair: ViewPair) -> Markup:
        return Markup(database and draw_matches(images, pair, database) or "")

    resources = importlib.resources.files("sfmprep.report")
    css, js, text = (
        (resources / f"page.{kind}").read_text("utf-8")
        for kind in ("css", "js", "html")
    )
    page = _template(text).render(
        report=report,
        facts=sections.facts(report),
        out=path.resolve().parent,
        scene=data["scene"],
        left_out=sections.left_out(report),
        labels=sections.STATUS_LABELS,
        what_to_do=sections.WHAT_TO_DO,
        has_features=features is not None,
        shown=sections.shown(report),
        strips={film.name: sections.strip(film) for film in images.films[:_MAX_STRIPS]},
        links=[] if database is None else list(sections.links(report)),
        cameras=cameras,
        settings=yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True),
        drawn=drawn,
        matches=matches,
        css=css,
        js=js,
        plotly=get_plotlyjs(),
        # in JSON a "<" can be spelled so that no name ends the script
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    write_text(path, page)


def _template(text: str) -> jinja2.Template:
    """The page; where a line of it ends or begins is no blank in what is shown."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"commas": "{:,}".format, "duration": sections.duration}
    environment.globals["count"] = sections.count
    return environment.from_string("".join(map(str.strip, text.splitlines())))


def _some(images: Sequence[ImageReport]) -> list[ImageReport]:
    """At most so many images as the page has rows for, those left out before others."""
    order = sorted(range(len(images)), key=lambda k: images[k].status == "registered")
    num_out = sum(image.status != "registered" for image in images)
    room = max(_MAX_ROWS - num_out, 0)
    registered = order[num_out:]
    step = max(-(-len(registered) // max(room, 1)), 1)
    kept = [*order[: min(num_out, _MAX_ROWS)], *registered[: room * step : step]]
    return [images[k] for k in sorted(kept)]


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
            _rounded(image.sharpness),
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
