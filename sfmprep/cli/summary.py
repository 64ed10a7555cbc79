"""What a run found, on the screen or as JSON, and the exit code that goes with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from sfmprep.report import added
from sfmprep.report.given_poses import moved
from sfmprep.report.schema import Finding, Report
from sfmprep.report.thresholds import check_thresholds
from sfmprep.report.verdict import EXIT_BELOW, exit_code, per_cent
from sfmprep.terminal import say, show

_WANTED = ("registered", "not_mapped")
_MAX_LISTED = 10


def finish(
    report: Report, out: Path, *, thresholds: Sequence[str] = (), as_json: bool = False
) -> int:
    """Shows what was found and returns the exit code: 0, or 3, see `exit_code`.

    Args:
        report: What was found.
        out: The output folder.
        thresholds: Of `--fail-below`.
        as_json: Whether stdout gets the report itself and nothing else.

    Raises:
        ConfigError: see `check_thresholds`.
    """
    below = check_thresholds(report, thresholds)
    if as_json:
        print(report.to_json())
    else:
        print_report(report, out)
    for sentence in below:
        say(f"sfmprep: below the threshold: {sentence}")
    return EXIT_BELOW if below else exit_code(report)


def print_report(report: Report, out: Path) -> None:
    """What a run found, where it lies and what to do with it."""
    result, total = report.result, len(report.images)
    if result:
        registered = result.num_registered
        share = per_cent(registered, total)
        show(f"{registered} of {total} images registered ({share})")
    show(report.verdict)
    if result and (residuals := report.residuals):
        seeds = result.num_dataset_points
        start = "" if seeds is None else f", {seeds} in the dataset to start from"
        points = "1 point" if result.num_points == 1 else f"{result.num_points} points"
        show(
            f"{points}{start}; mean track length"
            f" {result.mean_track_length:.1f}, mean reprojection error"
            f" {residuals.mean_px:.2f} px"
        )
    if graph := report.view_graph:
        show(f"{graph.num_pairs} of {graph.num_matched_pairs} pairs verified")
    if trust := report.consistency:
        agrees = per_cent(round(1000 * trust.consistency), 1000)
        out_of = f"{trust.num_asked} of them that were asked"
        show(f"{agrees} of {out_of} agree with the poses")
    if report.given_poses:
        show(moved(report.given_poses))
    if report.added and (told := added.moved(report.added)):
        show(told)
    show(f"features: {report.frontend}")
    _print_rungs(report)
    for finding in report.warnings:
        say(f"warning: {finding.text} {finding.advice}")
    _print_left_out(report)
    kept = [other for other in report.other_models if not other.folder]
    if kept:
        show(f"smaller models kept in {out}/work/models: {len(kept)}")
    if report.seconds:
        show(" · ".join(f"{k} {v:.1f} s" for k, v in report.seconds.items()))
    whole = out.resolve()
    show(f"report: {shlex.quote(str(whole / 'report.html'))}")
    _print_next(report, whole)


def _print_rungs(report: Report) -> None:
    """What each rung beyond the first tried, cost and gained."""
    for rung in report.rungs[1:]:
        if rung.num_pairs or rung.num_left_out:
            took = "" if rung.seconds is None else f" in {rung.seconds:.0f} s"
            left_out = f"; no time for {rung.num_left_out}" * bool(rung.num_left_out)
            show(
                f"  {rung.name}: {rung.num_pairs} pairs{took}, verified"
                f" {rung.num_verified_before} before and {rung.num_verified} after"
                f"{left_out}"
            )


def _print_left_out(report: Report) -> None:
    elsewhere = {other.number for other in report.other_models if other.folder}
    left_out = [
        i for i in report.images if i.status not in _WANTED and i.model not in elsewhere
    ]
    for image in left_out[:_MAX_LISTED]:
        show(f"  left out: {image.name}: {image.reason}")
    if len(left_out) > _MAX_LISTED:
        show(f"  and {len(left_out) - _MAX_LISTED} more, see the report")


def _print_next(report: Report, out: Path) -> None:
    is_mapped = report.settings["mapping"]["type"] != "none"
    if is_mapped and not report.result:
        show("next: the report says what to mend; then run the same command again.")
        return
    show(f"result: {shlex.quote(str(out if is_mapped else out / 'database.db'))}")
    if not report.next_steps:
        for finding in _blocking(report):
            show(f"next: {finding.advice}")
        show("Then run the same command again: what is there is used.")
        _print_others(report, out)
        return
    one_of = ", one of" * (len(report.next_steps) > 1)
    print(f"next{one_of}:")
    for command in report.next_steps:
        print(f"  {command}")  # never wrapped: to be copied
    _print_others(report, out)


def _print_others(report: Report, out: Path) -> None:
    for other in report.other_models:
        if other.folder:
            folder = shlex.quote(str(out / other.folder))
            show(f"another dataset, of {other.num_images} other images: {folder}")


def _blocking(report: Report) -> list[Finding]:
    return [finding for finding in report.warnings if finding.blocks_training]
