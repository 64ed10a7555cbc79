"""What a result is worth: grade, headline, exit code and next steps follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfmprep.report.schema import Finding, Grade, OtherModel, Report, Result

EXIT_BELOW = 3
_USABLE_SHARE = 0.8
# findings that make training pointless, as half a sentence
_WHY_NOT = {
    "little_parallax": "the camera only turned",
    "narrow_angles": "the camera hardly moved",
    "few_images": "the photographs in it are too few",
    "few_model_points": "it has too few 3D points",
    "loose_poses": "most photographs see too few points",
    "overlaid": "places that look alike lie on each other",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How good a result is."""

    grade: Grade
    sentence: str  # for a first-time user
    trainable: bool  # whether a trainer should be given it


def judge(
    num_images: int,
    result: Result | None,
    findings: Sequence[Finding],
    failure: str | None,
    others: Sequence[OtherModel] = (),
) -> Verdict:
    """Decides how good a result is.

    Args:
        num_images: All photographs, 1 or more.
        result: The largest model, or None.
        findings: As `list_findings` orders them.
        failure: Why there is no model or no dataset, where that is known.
        others: The models beside the largest.
    """
    if result is None or failure is not None:
        sentence = failure or "No poses were asked for."
        return Verdict(grade="failed", sentence=sentence, trainable=False)
    share = result.num_dataset / num_images
    everything = result.num_dataset == num_images
    placed = (
        f"All {num_images:,} photographs are in the dataset"
        if everything
        else f"{result.num_dataset:,} of {num_images:,} photographs"
        f" ({per_cent(result.num_dataset, num_images)}) are in the dataset"
    )
    if blocking := [f.code for f in findings if f.blocks_training]:
        causes = [_WHY_NOT[code] for code in blocking if code in _WHY_NOT]
        why = f": {' and '.join(causes[:2])}" if causes else ""
        return Verdict(
            grade="poor",
            sentence=f"{placed}, but it is not worth training on{why}. See below what"
            " to do.",
            trainable=False,
        )
    further = [other for other in others if other.folder]
    if share < _USABLE_SHARE and further:
        number = sum(other.num_images for other in further)
        where = "a further one" if len(further) == 1 else f"{len(further)} further ones"
        return Verdict(
            grade="poor",
            sentence=f"{placed}, and {number:,} in {where}: each can be trained, but"
            " they share no frame. See below why.",
            trainable=True,
        )
    if share < _USABLE_SHARE:
        return Verdict(
            grade="poor",
            sentence=f"{placed}: what they show can be trained, but much of the capture"
            " is missing. See below why.",
            trainable=True,
        )
    if findings:
        many = f"{len(findings)} things" if len(findings) > 1 else "one thing"
        rest = f"It can be trained; look at {many} first."
    elif not everything:
        rest = "It can be trained; see below what is missing."
    else:
        return Verdict(
            grade="good",
            sentence=f"{placed}, and nothing looks wrong. It is ready for training.",
            trainable=True,
        )
    return Verdict(grade="usable", sentence=f"{placed}. {rest}", trainable=True)


def per_cent(part: int, whole: int) -> str:
    """A share for people: 0% and 100% only where it is none or all.

    Args:
        part: 0 to `whole`.
        whole: 1 or more.
    """
    rounded = round(100 * part / whole)
    return f"{rounded if part in (0, whole) else min(max(rounded, 1), 99)}%"


def exit_code(report: Report) -> int:
    """0 for a result that can be trained, or where no poses were asked for; else 3."""
    done = report.trainable or report.settings["mapping"]["type"] == "none"
    return 0 if done else EXIT_BELOW
