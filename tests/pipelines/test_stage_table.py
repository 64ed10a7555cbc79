"""Keys and states: what changes which, and in what words it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.pipelines import stage_keys
from sfmprep.pipelines.ledger import Ledger, changed_settings
from sfmprep.pipelines.stage import FILMS, IMAGES, RIGS
from sfmprep.pipelines.stage_keys import Keys
from sfmprep.pipelines.stage_table import STAGES

IMAGES_NOW = {"a.jpg": "1", "b.jpg": "2"}
DENSE = "dense={matcher: {type: xfeat-star}}"


def keys(*settings: str, images: dict[str, str] = IMAGES_NOW) -> Keys:
    return Keys(load_recipe("sift", settings), images, {})


def different(one: Keys, other: Keys, what: str) -> set[str]:
    return {
        name
        for name in STAGES
        if one.applies(name)
        and other.applies(name)
        and getattr(one, what)(name) != getattr(other, what)(name)
    }


AFTER_MAPPING = {"second pairs", "map on", "outliers", "export"}
AFTER_MATCHING = {"database", "map", *AFTER_MAPPING}


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("name=other", set()),
        ("engine.cache_gb=1", set()),
        ("export.jpeg_quality=80", {"export"}),
        ("export.outliers.min_num_points=3", {"outliers", "export"}),
        ("mapping.min_num_matches=20", {"map", *AFTER_MAPPING}),
        ("database.max_error_px=2", AFTER_MATCHING),
        ("seed=1", {"pairs", *AFTER_MATCHING}),
        ("pairs={type: sequential}", {"pairs"}),
        ("matcher.ratio=0.9", {"match", *AFTER_MATCHING}),
        ("features.max_keypoints=9", {"extract", "pairs", "match", *AFTER_MATCHING}),
        ("engine.precision=float32", set()),  # SIFT has no other
        ("keep_damaged=true", {"extract", "pairs", "match", *AFTER_MATCHING}),
    ],
)
def test_a_setting_changes_the_stages_that_depend_on_it(
    setting: str, changed: set[str]
) -> None:
    # new pairs leave the verified ones valid: their database grows, and is mapped anew
    later = AFTER_MATCHING - {"database"} if setting.startswith("pairs") else set()
    assert different(keys(), keys(setting), "key") == changed | later


def test_one_photograph_more_adds_to_what_grows() -> None:
    more = keys(images={**IMAGES_NOW, "c.jpg": "3"})
    assert different(keys(), more, "key") == {"pairs", "map", *AFTER_MAPPING}
    assert different(keys(), more, "state") == {
        *("extract", "pairs", "match"),
        *AFTER_MATCHING,
    }


def test_semi_dense_stages_stand_between_matching_and_the_database() -> None:
    with_dense, without = keys(DENSE), keys()
    assert without.key("join") == without.key("match")
    assert different(with_dense, without, "key") == {*AFTER_MATCHING}
    wider = keys(DENSE.replace("}}", "}, radius: 2}"))
    assert different(with_dense, wider, "key") == {
        *("join", "refine", *AFTER_MATCHING),
    }


def test_a_version_changes_a_stage_and_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = keys()
    before.key("export")
    newer = {**STAGES, "map": replace(STAGES["map"], version=99)}
    monkeypatch.setattr(stage_keys, "STAGES", newer)
    assert different(before, keys(), "key") == {"map", *AFTER_MAPPING}


def test_every_stage_reads_stages_above_it() -> None:
    known = {IMAGES, FILMS, RIGS}
    for name, stage in STAGES.items():
        assert {*stage.reads, *stage.over} <= known
        known.add(name)


def test_pairs_of_a_file_are_known_by_its_content(tmp_path: Path) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file in files:
        file.write_text("a.jpg b.jpg\n")
    first, second = (keys("pairs.type=file", f"pairs.path={file}") for file in files)
    assert first.key("pairs") == second.key("pairs")
    files[1].write_text("a.jpg c.jpg\n")
    third = keys("pairs.type=file", f"pairs.path={files[1]}")
    assert first.key("pairs") != third.key("pairs")


def test_recorded_weights_count_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("splat").with_frontend(load_recipe("splat").frontends[0])
    lacking = Keys(recipe, IMAGES_NOW, {})
    assert lacking.settings("extract")["weights_sha256"] is None
    recorded = {"extract": {**lacking.settings("extract"), "weights_sha256": "abc"}}
    found = Keys(recipe, IMAGES_NOW, recorded)
    assert found.settings("extract") == recorded["extract"]
    # but not for other settings
    features = recipe.features.model_copy(update={"max_keypoints": 7})
    other = recipe.model_copy(update={"features": features})
    assert Keys(other, IMAGES_NOW, recorded).settings("extract") != recorded["extract"]


def test_a_budget_counts_where_it_left_something_out() -> None:
    stronger = "stronger={matcher: {type: nearest}}"
    without, of_ten = keys(stronger), keys(stronger, "budget_minutes=10")
    assert not different(without, of_ten, "state")
    of_ten.note_budget("weak pairs", was_short=False)
    assert not different(without, of_ten, "state")
    of_ten.note_budget("weak pairs", was_short=True)
    later = {"match weak pairs", *AFTER_MATCHING}
    assert different(without, of_ten, "state") == {"weak pairs", *later}

    def then(*settings: str) -> Keys:
        recorded = {name: of_ten.settings(name) for name in STAGES}
        return Keys(load_recipe("sift", [stronger, *settings]), IMAGES_NOW, recorded)

    # the same and less find nothing to do; more goes on
    assert not different(of_ten, then("budget_minutes=10"), "state")
    assert not different(of_ten, then("budget_minutes=5"), "state")
    assert not different(without, then("budget_minutes=11"), "state")
    assert not different(without, then(), "state")


# ---------------------------------------------------------------------------- ledger
def ledger(out: Path, *settings: str, images: dict[str, str] = IMAGES_NOW) -> Ledger:
    return Ledger(out, load_recipe("sift", settings), images)


def make(ledger: Ledger, *names: str) -> None:
    for name in names:
        file = ledger.file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        ledger.begin(name)
        file.touch()
        ledger.finish(name)


def test_why_a_stage_would_run_again(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    (tmp_path / "work").mkdir()
    assert first.why("map") == ["not done yet"]
    make(first, *(name for name in STAGES if first.keys.applies(name)))
    assert all(first.is_done(name) and first.why(name) == [] for name in AFTER_MATCHING)

    first.file("map").unlink()
    assert first.why("map") == ["work/mapped.zip is missing"]
    make(first, "map")
    first.begin("map")
    assert first.why("map") == ["it was stopped"]
    make(first, "map")

    other = ledger(tmp_path, "features.max_keypoints=9", "seed=1")
    assert other.why("extract") == ["config.max_keypoints was 8192 and is 9"]
    assert other.why("match") == ["extract changed", "pairs changed"]
    assert other.why("map") == ["seed was 0 and is 1", "database changed"]
    more = ledger(tmp_path, images={**IMAGES_NOW, "c.jpg": "3"})
    assert more.why("extract") == ["photographs or masks changed"]
    assert more.can_grow("extract") and more.can_grow("database")
    assert not other.can_grow("database")
    # nothing was changed by asking
    assert first.is_done("export")


def test_files_that_changed_are_known_by_their_sums(tmp_path: Path) -> None:
    of_run = ledger(tmp_path)
    (tmp_path / "work").mkdir()
    make(of_run, *(name for name in STAGES if of_run.keys.applies(name)))
    assert [name for name in STAGES if of_run.damaged(name)] == []
    for name in ("database", "map", "pairs", "extract", "export"):
        of_run.file(name).write_text("other")
    # stores have sums of their own, texts may be edited, a dataset is the user's
    found = {name: of_run.damaged(name) for name in STAGES if of_run.damaged(name)}
    assert found == {
        "database": [tmp_path / "work" / "database.db"],
        "map": [tmp_path / "work" / "mapped.zip"],
    }
    assert of_run.is_edited("pairs") and not of_run.is_edited("map")
    of_run.forget("map")
    assert of_run.why("map") == ["work/mapped.zip is missing"]
    assert of_run.damaged("map") == []


def test_what_is_made_anew_counts_if_it_is_another(tmp_path: Path) -> None:
    of_run = ledger(tmp_path)
    (tmp_path / "work").mkdir()
    make(of_run, *(name for name in STAGES if of_run.keys.applies(name)))
    last = of_run.keys.nearest("refine")
    of_run.file(last).unlink()
    make(of_run, last)
    assert of_run.is_done("outliers")  # they are as they were
    of_run.begin(last)
    of_run.file(last).write_text("other models")
    of_run.finish(last)
    assert not of_run.is_done("outliers")
    assert of_run.why("outliers") == [f"{last} changed"]
    assert not of_run.can_grow("outliers")  # what is there is of the other models


def test_what_was_left_out_for_time_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    short = ledger(tmp_path, "budget_minutes=0.5")
    short.begin("map")
    short.file("map").touch()
    short.note_budget("map", was_short=True)
    short.finish("map")
    again = ledger(tmp_path, "budget_minutes=0.5", "seed=1")
    assert "seed was 0 and is 1" in again.why("map")
    assert "short" not in str(again.why("map"))
    more = ledger(tmp_path, "budget_minutes=2")
    assert "a budget of 0.5 min had no time for all of it" in more.why("map")


def test_rigs_and_photographs_that_are_read_are_named(tmp_path: Path) -> None:
    recipe = load_recipe("sift", ["motion_masks={}"])
    first = Ledger(tmp_path, recipe, IMAGES_NOW, rigs=[{"cameras": ["a"]}])
    (tmp_path / "work").mkdir()
    make(first, *(name for name in STAGES if first.keys.applies(name)))
    other = Ledger(tmp_path, recipe, {"a.jpg": "1"}, rigs=[{"cameras": ["b"]}])
    assert other.why("motion masks") == ["photographs or masks changed"]
    assert "rigs changed" in other.why("hold rigs")


def test_a_stage_is_whole_only_if_what_it_read_was(tmp_path: Path) -> None:
    stopped = ledger(tmp_path)
    (tmp_path / "work").mkdir()
    stopped.begin("extract")
    stopped.file("extract").touch()
    make(stopped, "pairs")  # of the first photographs
    assert not stopped.is_done("pairs")
    make(stopped, "extract", "pairs")
    assert stopped.is_done("pairs")


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"b": 2}, ["a was 1 and is null", "b was null and is 2"]),
        (
            {"pairs": {"type": "auto", "window": 3}},
            {"pairs": {"type": "file"}},
            ["pairs.type was auto and is file"],
        ),
        ({"w": "ab" * 32}, {"w": "cd" * 32}, ["w was abababab and is cdcdcdcd"]),
    ],
)
def test_changes_in_words(was: object, now: object, words: list[str]) -> None:
    assert list(changed_settings(was, now)) == words


def test_the_database_is_in_plain_sight_where_it_is_the_result(tmp_path: Path) -> None:
    recipe: Recipe = load_recipe("sift", ["mapping.type=none"])
    assert Ledger(tmp_path, recipe, {}).file("database") == tmp_path / "database.db"
    assert ledger(tmp_path).file("database") == tmp_path / "work" / "database.db"
