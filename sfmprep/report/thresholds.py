"""Thresholds below which a result counts as a failure: `registered=0.9`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfmprep.errors import ConfigError, did_you_mean
from sfmprep.report.schema import ImageReport, Report


@dataclass(frozen=True)
class _Measure:
    """One thing that a threshold can be set for."""

    value: Callable[[Report], float]
    text: str  # what is below, formatted with value and least
    most: float  # the largest threshold that makes sense
    example: str


def _share(report: Report) -> float:
    if report.result is None or not report.images:
        return 0.0
    return report.result.num_dataset / len(report.images)


def _per_image(
    of_image: Callable[[ImageReport], float],
) -> Callable[[Report], float]:
    """The smallest value of any image in the dataset; 0 where there is none."""

    def smallest(report: Report) -> float:
        values = [of_image(i) for i in report.images if i.status == "registered"]
        return min(values, default=0.0)

    return smallest


_MEASURES = {
    "registered": _Measure(
        _share,
        "{value:.1%} of the images are in the dataset, but at least {least:.1%} are"
        " wanted (registered).",
        1,
        "0.9",
    ),
    "points": _Measure(
        lambda r: r.result.num_points if r.result else 0,
        "The model has {value:,.0f} points, but at least {least:,.0f} are wanted"
        " (points).",
        math.inf,
        "1000",
    ),
    "track_length": _Measure(
        lambda r: r.result.mean_track_length if r.result else 0,
        "A point is seen by {value:.2f} images on average, but at least {least:g} are"
        " wanted (track_length).",
        math.inf,
        "3",
    ),
    "angle_deg": _Measure(
        lambda r: r.result.median_angle_deg if r.result else 0,
        "Half of the points are seen within {value:.1f} degrees, but at least {least:g}"
        " are wanted (angle_deg).",
        180,
        "5",
    ),
    "image_points": _Measure(
        _per_image(lambda i: i.num_points),
        "One of the images sees only {value:,.0f} points, but at least {least:,.0f} are"
        " wanted of each (image_points).",
        math.inf,
        "50",
    ),
    "image_coverage": _Measure(
        _per_image(lambda i: i.coverage or 0),
        "One of the images has points on {value:.0%} of its area, but at least"
        " {least:.0%} is wanted of each (image_coverage).",
        1,
        "0.2",
    ),
    "consistency": _Measure(
        lambda r: r.consistency.consistency if r.consistency else 0,
        "{value:.1%} of the verified pairs agree with the poses, but at least"
        " {least:.1%} are wanted (consistency).",
        1,
        "0.9",
    ),
}


def check_thresholds(report: Report, thresholds: Sequence[str]) -> list[str]:
    """Says which measures are below their thresholds; nothing if none is.

    Args:
        report: Of a run; without a model every measure is 0.
        thresholds: Such as `registered=0.9`, with one of these keys each:
            `registered`, share 0..1 of all images that are in the dataset; `points`,
            3D points; `track_length`, images that see a point on average; `angle_deg`,
            median over the points of the largest angle between rays; `image_points`
            and `image_coverage`, points and covered share 0..1 of the worst image;
            `consistency`, share 0..1 of the verified pairs that agree with the poses.

    Returns:
        A sentence for each measure that is below.

    Raises:
        ConfigError: an unknown key, or a number that is none or out of range.
    """
    parsed = [(parse_threshold(text)) for text in thresholds]
    below = []
    for key, least in parsed:
        value = _MEASURES[key].value(report)
        if value < least:
            below.append(_MEASURES[key].text.format(value=value, least=least))
    return below


def parse_threshold(text: str) -> tuple[str, float]:
    """Reads `registered=0.9`, so that a run need not end before a mistake is told.

    Raises:
        ConfigError: see `check_thresholds`.
    """
    key, equals, number = (part.strip() for part in text.partition("="))
    if key not in _MEASURES:
        hint = did_you_mean(key, _MEASURES)
        raise ConfigError(
            f"threshold {text!r}: {key!r} is none of {', '.join(_MEASURES)}.{hint}"
        )
    measure = _MEASURES[key]
    try:
        least = float(number)
    except ValueError:
        least = math.nan
    if not equals or not 0 <= least <= measure.most or math.isinf(least):
        upper = f"0 to {measure.most:g}" if measure.most < math.inf else "0 or more"
        raise ConfigError(
            f"threshold {text!r}: expected {key}= and a number, {upper}, such as"
            f" {key}={measure.example}"
        )
    return key, least
