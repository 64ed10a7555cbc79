"""What became of given poses, in figures and in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from sfmprep.mapping.from_poses import PoseChanges
from sfmprep.report.schema import Finding, GivenPoses

_MAX_NAMES = 10


def given_poses(found: PoseChanges) -> GivenPoses:
    """How given poses compare with those of the result."""
    turned = [change.rotation_deg for change in found.changes] or [0.0]
    moved_by = [change.distance for change in found.changes] or [0.0]
    return GivenPoses(
        source=found.source,
        convention=found.convention,
        time_offset_s=found.time_offset_s,
        num_given=found.num_given,
        rotation_stddev_deg=found.rotation_stddev_deg,
        position_stddev=found.position_stddev,
        median_rotation_deg=median(turned),
        max_rotation_deg=max(turned),
        median_distance=median(moved_by),
        max_distance=max(moved_by),
        contradicted=[c.name for c in found.changes if c.is_contradicted],
        added=list(found.added),
        lost=list(found.lost),
    )


def moved(given: GivenPoses) -> str:
    """How far poses moved, in a sentence."""
    clock = (
        ""
        if given.time_offset_s is None
        else f"; its clock is {1000 * given.time_offset_s:+.0f} ms off"
    )
    return (
        f"the poses of {given.source} moved by {given.median_rotation_deg:.2g}° and"
        f" {given.median_distance:.2g} of its units (median), at most by"
        f" {given.max_rotation_deg:.2g}° and {given.max_distance:.2g}{clock}"
    )


def of_given_poses(given: GivenPoses | None) -> Iterator[Finding]:
    """What a person should know of poses that were not kept."""
    if given is not None and given.contradicted:
        many = len(given.contradicted)
        yield Finding(
            code="pose_contradicted",
            text=f"The given poses of {many} of {given.num_given} images contradict the"
            " photographs, and were replaced by what these tell.",
            advice="Check whether their names or times are those of other images.",
            images=given.contradicted[:_MAX_NAMES],
        )
    if given is not None and given.lost:
        yield Finding(
            code="pose_unsupported",
            text=f"{len(given.lost)} of {given.num_given} images with a given pose have"
            " none now: no points that others see support it.",
            advice="They are not in the dataset; nothing needs to be done.",
            images=given.lost[:_MAX_NAMES],
        )
