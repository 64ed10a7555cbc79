"""Places that look alike in findings, verdict and thresholds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sfmprep.mapping.contradictions import Contradiction
from sfmprep.mapping.trust import Trust
from sfmprep.mapping.wrong_pairs import WrongPair
from sfmprep.report.schema import OtherModel, ViewPair
from sfmprep.report.sections import links
from sfmprep.report.thresholds import check_thresholds
from tests.support.synthetic_run import Run, synthesize

PAIR = WrongPair(
    name0="a.jpg", name1="b.jpg", num_inliers=50, absent=0.25, certainty=0.9
)

BROKEN = Contradiction(name0="a.jpg", name1="b.jpg", num_inliers=80, share_fitting=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthesize(tmp_path_factory.mktemp("run"))


def trust(
    *, overlaid: bool = False, left_out: bool = False, broken: bool = False
) -> Trust:
    return Trust(
        num_asked=20,
        num_contradicted=1,
        overlaid=(PAIR,) * overlaid,
        left_out=(PAIR,) * left_out,
        broken=(BROKEN,) * broken,
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


def test_pairs_that_the_row_contradicts_say_so(run: Run) -> None:
    wrong = replace(PAIR, absent=None, loop_deg=171.6)
    report = run.report(trust=replace(trust(), left_out=(wrong,)))
    finding = next(f for f in report.warnings if f.code == "look_alikes")
    assert finding.text == (
        "1 pair of images such as a.jpg and b.jpg match with 50 matches, but show"
        " different places that look alike: other pairs lead from one to the other"
        " another way. They were left out of the mapping."
    )
    titles = {title: pairs for title, _, pairs in links(report)}
    ((_, text),) = titles["Pairs that were left out"]
    assert text == (
        "By a loop of other pairs it is off by 172° (certainty 0.90); it has"
    )


def test_neighbours_that_stand_apart_are_named(run: Run) -> None:
    report = run.report(trust=trust(broken=True))
    finding = next(f for f in report.warnings if f.code == "broken_order")
    assert finding.text == (
        "1 pair of photographs in a row, such as a.jpg and b.jpg, match well, but the"
        " poses put them where they cannot. A stretch of the row may lie on a place"
        " that looks like its own."
    )
    assert finding.images == ["a.jpg", "b.jpg"]
    assert not finding.blocks_training
    titles = {title: pairs for title, _, pairs in links(report)}
    ((pair, text),) = titles["Neighbours in the row that stand apart"]
    assert (pair.name0, pair.name1, pair.num_inliers) == ("a.jpg", "b.jpg", 80)
    assert text == "By the poses they do not see the same; the pair has"


def test_models_that_stay_apart_name_what_is_between_them(run: Run) -> None:
    report = run.report()
    link = ViewPair(name0="a.jpg", name1="b.jpg", num_inliers=31)
    other = OtherModel(
        number=1,
        num_images=5,
        num_points=90,
        folder=None,
        reason="fewer than 6 photographs",
        num_links=3,
        strongest_link=link,
    )
    report = report.model_copy(update={"other_models": [other]})
    titles = {title: pairs for title, _, pairs in links(report)}
    assert titles["Models that stay apart"] == [
        (
            link,
            "3 pairs between the largest model and model 1, of 5 photographs; the"
            " strongest has",
        )
    ]


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
    assert codes.isdisjoint({"overlaid", "look_alikes", "broken_order"})
