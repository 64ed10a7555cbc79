"""Photographs inside the report: small JPEGs with matches or keypoints drawn on them.

Everything is upright, and each picture is one SVG that holds its pixels.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from sfmprep import coords
from sfmprep.capture.batches import fit_size
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import ImageError
from sfmprep.mapping.database import open_database
from sfmprep.report.schema import ViewPair
from sfmprep.types import Bytes, Float32

_THUMB_PX = 420  # height of each photograph of a pair
_SMALL_PX = 260  # longer side of a single one
_GAP_PX = 12
_JPEG_QUALITY = 72
_MAX_LINES = 80
_MAX_DOTS = 300


@dataclass(frozen=True, kw_only=True)
class _Thumbnail:
    """One upright photograph as a JPEG, and where its keypoints went."""

    data: str  # base64
    width: int
    height: int
    xy: Float32


def draw_matches(images: ImageSet, pair: ViewPair, database: Path) -> str | None:
    """An SVG of two photographs with lines between their verified matches.

    At most 80 lines, evenly chosen. None where a photograph cannot be read any more.
    """
    with open_database(database) as opened:
        in_database = {i.name: i.image_id for i in opened.read_all_images()}
        ids = [in_database[name] for name in (pair.name0, pair.name1)]
        index = opened.read_two_view_geometry(ids[0], ids[1]).inlier_matches
        index = index[:: -(-len(index) // _MAX_LINES) or 1]
        places = [
            opened.read_keypoints(image_id)[index[:, k], :2].astype(np.float32)
            for k, image_id in enumerate(ids)
        ]
    first = _thumbnail(images, pair.name0, places[0], height=_THUMB_PX)
    second = _thumbnail(images, pair.name1, places[1], height=_THUMB_PX)
    if first is None or second is None:
        return None
    right = first.width + _GAP_PX
    parts = [
        _svg_start(
            right + second.width,
            max(first.height, second.height),
            f"{len(index)} matches between {pair.name0} and {pair.name1}",
        ),
        _picture(first, 0),
        _picture(second, right),
    ]
    order = np.argsort(first.xy[:, 1])  # neighbours get neighbouring colours
    for rank, row in enumerate(order.tolist()):
        (x0, y0), (x1, y1) = first.xy[row], second.xy[row]
        colour = f"hsl({rank * 300 // max(len(order), 1)} 90% 60%)"
        parts.append(
            f'<g stroke="{colour}"><line x1="{x0:.1f}" y1="{y0:.1f}"'
            f' x2="{x1 + right:.1f}" y2="{y1:.1f}"/>'
            f'<circle cx="{x0:.1f}" cy="{y0:.1f}" r="2.5"/>'
            f'<circle cx="{x1 + right:.1f}" cy="{y1:.1f}" r="2.5"/></g>'
        )
    return "".join([*parts, "</svg>"])


def draw_keypoints(images: ImageSet, name: str, xy: Float32) -> str | None:
    """An SVG of a small photograph with some of its keypoints [N, 2], N may be 0.

    None where the photograph cannot be read.
    """
    chosen = xy[:: -(-len(xy) // _MAX_DOTS) or 1]
    thumbnail = _thumbnail(images, name, chosen, longer=_SMALL_PX)
    if thumbnail is None:
        return None
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>' for x, y in thumbnail.xy
    )
    start = _svg_start(thumbnail.width, thumbnail.height, name)
    return f'{start}{_picture(thumbnail, 0)}<g class="dots">{dots}</g></svg>'


def _thumbnail(
    images: ImageSet,
    name: str,
    xy: Float32,
    *,
    height: int | None = None,
    longer: int | None = None,
) -> _Thumbnail | None:
    if name not in images.infos:
        return None
    info = images.infos[name]
    try:
        pixels = images.read_pixels(name)
    except ImageError:
        return None  # the report says so in words
    size = coords.upright_size(info.size, info.orientation)
    if height is not None:
        longer = max(1, round(height * max(size) / size[1]))
    small = fit_size(size, longer)
    stored_small = coords.upright_size(small, info.orientation)
    reduced = cv2.resize(pixels, stored_small, interpolation=cv2.INTER_AREA)
    upright = coords.upright_pixels(np.asarray(reduced, np.uint8), info.orientation)
    upright_xy = coords.upright_xy(xy, info.size, info.orientation)
    return _Thumbnail(
        data=_jpeg(upright),
        width=small[0],
        height=small[1],
        xy=coords.resize_xy(upright_xy, size, small),
    )


def _jpeg(pixels: Bytes) -> str:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, quality)
    return base64.b64encode(data.tobytes()).decode("ascii")


def _svg_start(width: int, height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img"'
        f' aria-label="{escape(label)}">'
    )


def _picture(thumbnail: _Thumbnail, x: int) -> str:
    return (
        f'<image x="{x}" y="0" width="{thumbnail.width}" height="{thumbnail.height}"'
        f' href="data:image/jpeg;base64,{thumbnail.data}"/>'
    )
