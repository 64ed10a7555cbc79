"""What follows the first rung, within a budget of minutes."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path

import pytest

from sfmprep import budget as budgets
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MatcherConfig
from sfmprep.config.load import load_recipe
from sfmprep.mapping.verify import count_inliers
from sfmprep.models.build import build_matcher
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines import bounded, matching, stages
from sfmprep.pipelines.bounded import num_left_out, within_budget
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.run import Run, open_run
from sfmprep.types import Pair

# a ratio test so strict that many pairs stay weak
SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=400",
    "matcher.ratio=0.5",
    "stronger={matcher: {type: nearest, ratio: 0.9}, min_num_inliers: 80}",
)
RANKED = [("a", f"b{k:02d}") for k in range(20)]


@pytest.fixture
def photos(demo_scene: Path, tmp_path: Path) -> Path:
    """Eight views in a row."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((demo_scene / "images").iterdir())[:8]:
        shutil.copy(path, folder)
    return folder


class Clock:
    """Stands still but for what is attempted."""

    def __init__(self, seconds_a_pair: float) -> None:
        self.now, self.each = 0.0, seconds_a_pair
        self.done: list[Pair] = []

    def monotonic(self) -> float:
        return self.now

    def attempt(self, pairs: Pairs) -> None:
        self.done += pairs
        self.now += self.each * len(pairs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(seconds_a_pair=3.0)
    monkeypatch.setattr(bounded, "time", clock)
    monkeypatch.setattr(budgets, "time", clock)
    return clock


def run_with(photos: Path, tmp_path: Path, minutes: str) -> Run:
    recipe = load_recipe("sift", [f"budget_minutes={minutes}"])
    with open_run(ImageSet.scan(photos), tmp_path / "out", recipe) as run:
        return run


def test_without_a_budget_all_is_tried_and_nothing_measured(
    photos: Path, tmp_path: Path, clock: Clock
) -> None:
    run = run_with(photos, tmp_path, "null")
    assert within_budget(run, "weak pairs", "x", RANKED, clock.attempt) == RANKED
    assert not clock.done
    assert num_left_out(run, "weak pairs") == 0


def test_the_least_wanted_pairs_are_left_out(
    photos: Path, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = run_with(photos, tmp_path, "0.5")
    # 4 pairs took 12 s of 30, so there is time for 6 more
    found = within_budget(run, "weak pairs", "glue", RANKED, clock.attempt)
    assert found == RANKED[:10]
    assert clock.done == RANKED[:4]
    assert num_left_out(run, "weak pairs") == 10
    assert caplog.messages[-2:] == [
        "glue: about 0.8 min for 16 pairs; 0.3 min are left in the budget",
        "glue: the budget of 0.5 min has time for 10 of 20 pairs; the same command with"
        " more goes on from there",
    ]
    # a later run with more: what is there costs nothing
    run = run_with(photos, tmp_path, "1")
    there = RANKED[:10]
    found = within_budget(run, "weak pairs", "glue", RANKED, clock.attempt, there=there)
    assert found == RANKED
    assert num_left_out(run, "weak pairs") == 0


def test_what_is_counted_may_be_images(
    photos: Path, tmp_path: Path, clock: Clock
) -> None:
    run = run_with(photos, tmp_path, "0.5")
    ranked = list(itertools.combinations("abcdefghi", 2))
    found = within_budget(
        *(run, "pairs beside", "x", ranked, clock.attempt),
        count=lambda pairs: len({name for pair in pairs for name in pair}),
    )
    # 5 images took 12 s; 18 s are enough for the others
    assert found == ranked


def test_a_budget_of_zero_gives_the_first_rung_and_says_so(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    built: list[MatcherConfig] = []

    def build(config: MatcherConfig, **how: object) -> object:
        built.append(config)
        return build_matcher(config)

    monkeypatch.setattr(stages, "build_matcher", build)
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    no_mapping = [*SETTINGS, "mapping.type=none"]
    recipe = load_recipe("sift", [*no_mapping, "budget_minutes=0"])
    report = reconstruct(photos, out, recipe)
    assert built == [recipe.matcher]
    _, again = report.rungs
    assert again.num_pairs == 0
    assert again.num_left_out > 0
    assert (
        "nearest: no time is left in the budget of 0 min, so"
        f" {again.num_left_out} pairs are not tried" in caplog.messages
    )
    first = count_inliers(out / "database.db")
    assert first == count_inliers(out / "work" / "verified.db")
    # with more it goes on: the first matcher is not asked again
    recipe = load_recipe("sift", no_mapping)
    report = reconstruct(photos, out, recipe)
    assert recipe.stronger is not None
    assert built[1:] == [recipe.stronger.matcher]
    assert [rung.num_left_out for rung in report.rungs] == [0, 0]
    assert report.rungs[1].num_pairs == again.num_left_out
    assert sum(count_inliers(out / "database.db").values()) > sum(first.values())


def test_a_budget_of_zero_is_no_failure(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load_recipe("sift", ["features.max_size=480", "budget_minutes=0"])
    report = reconstruct(photos, tmp_path / "out", recipe)
    assert report.failure is None
    assert report.result is not None
    with open_run(ImageSet.scan(photos), tmp_path / "out", recipe) as run:
        assert run.ledger.is_done("export")
        assert not run.budget.left


def test_the_rungs_of_one_run_share_a_budget(
    photos: Path, tmp_path: Path, clock: Clock
) -> None:
    recipe = load_recipe("sift", [*SETTINGS, "budget_minutes=1", "mapping.type=none"])
    with (
        open_run(ImageSet.scan(photos), tmp_path / "out", recipe) as run,
        matching.match_photographs(run, {}),
    ):
        before = run.budget.left
        found = within_budget(run, "weak pairs", "x", RANKED, clock.attempt)
        assert len(found) == 20
        assert run.budget.left == before - 12
