"""Places that look alike in findings, verdict and thresholds."""

from __future__ import annotations

import pytest

from sfmprep.mapping.trust import Trust
from sfmprep.mapping.wrong_pairs import WrongPair
from sfmprep.report.thresholds import check_thresholds
from tests.support.synthetic_run import Run, synthesize

PAIR = WrongPair(
    name0="a.jpg", name1="b.jpg", num_inliers=50, absent=0.25, certainty=0.9
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthesize(tmp_path_factory.mktemp("run"))


def trust(*, overlaid: bool = False, left_out: bool = False) -> Trust:
    return Trust(
        num_asked=20,
        num_contradicted=1,
        overlaid=(PAIR,) * overlaid,
        left_out=(PAIR,) * left_out,
    )


def test_overlaid_places_block_training(run: Run) -> None:
    report = run.report(trust=trust(overlaid=True))
    finding = next(f for f in report.warnings if f.code == "overlaid")
    assert finding.text == (
        "Places that look alike lie on each other: 1 pair of images such as a.jpg and"
        " b.jpg fit the poses, but much of what each shows is missing in the other. The"
        " poses of one of the places are wrong."
    )
    assert finding.images == ["a.jpg", "b.jpg"]
    assert not report.trainable
    assert report.consistency is not None
    assert report.consistency.consistency == 0.9


def test_pairs_that_were_left_out_are_named(run: Run) -> None:
    report = run.report(trust=trust(left_out=True))
    finding = next(f for f in report.warnings if f.code == "look_alikes")
    assert finding.text == (
        "1 pair of images such as a.jpg and b.jpg match with 50 matches, but show"
        " different places that look alike: much of what each shows is missing in the"
        " other. They were left out of the mapping."
    )
    assert not finding.blocks_training


def test_consistency_is_a_threshold(run: Run) -> None:
    report = run.report(trust=trust())
    assert check_thresholds(report, ["consistency=0.95"]) == []
    assert check_thresholds(report, ["consistency=0.96"]) == [
        "95.0% of the verified pairs agree with the poses, but at least 96.0% are"
        " wanted (consistency)."
    ]
    nothing = run.report()
    assert nothing.consistency is None
    assert len(check_thresholds(nothing, ["consistency=0.1"])) == 1


def test_without_look_alikes_nothing_is_said(run: Run) -> None:
    codes = {finding.code for finding in run.report(trust=trust()).warnings}
    assert codes.isdisjoint({"overlaid", "look_alikes"})
