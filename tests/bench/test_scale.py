"""The made city: what is photographed is so, and tables say what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfmprep.geometry.epipolar import errors_by_poses_px
from sfmprep.geometry.views import ModelArrays
from sfmprep.stores.tables import FeatureStore
from tests.bench.scale import stages, table
from tests.bench.scale.city import NOTHING, City, point_ids
from tests.bench.scale.truth import TrueMatcher


def test_city_is_the_same_each_time_and_keypoints_show_its_points(
    tmp_path: Path,
) -> None:
    folder = stages.Folder(tmp_path, 25)
    assert stages.make(folder)["keypoints"] > 25 * 100
    with FeatureStore(folder.features) as store:
        for name, found in City(num_images=25).features():
            assert np.array_equal(found.xy, store.get(name).xy)
    facts = stages.true_model(folder)
    assert 0.4 < facts["error_px"] < 1.0  # noise of 0.6 px in x and in y
    assert facts["observations"] > 3 * facts["points"] > 0


def test_matcher_knows_what_keypoints_show_and_errs(tmp_path: Path) -> None:
    folder = stages.Folder(tmp_path, 25)
    stages.make(folder)
    stages.true_model(folder)
    views = ModelArrays.of(folder.true_model()).views
    names = folder.city.names
    with FeatureStore(folder.features) as store:
        first, second = store.get(names[3]), store.get(names[4])
    matcher = TrueMatcher()
    (found,) = matcher.match([(first, matcher.prepare(second))])
    ids = point_ids(first)[found.index[:, 0]], point_ids(second)[found.index[:, 1]]
    right = ids[0] == ids[1]
    assert 0.8 < right.mean() < 0.95 and (ids[0][right] < NOTHING).all()
    for column in found.index.T:
        assert len(np.unique(column)) == len(column)
    rays = [
        views.rays(row, side.xy[column].astype(np.float64))
        for row, side, column in zip(
            (3, 4), (first, second), found.index.T, strict=True
        )
    ]
    errors = errors_by_poses_px(views, 3, 4, *rays)
    assert np.median(errors[right]) < 1.5


def row(stage: str, images: int, cpu: float, peak: float, **facts: object) -> table.Row:
    return {
        **{"stage": stage, "images": images, "seconds": 2 * cpu, "cpu_seconds": cpu},
        **{"peak_bytes": int(peak), "began_bytes": int(3e8), "tree_bytes": int(4e8)},
        **{"disk_bytes": 5_000_000, "facts": facts, "failure": "", "commit": "abc"},
        **{"date": "2026-01-02T03:04:05Z", "device": "CPU", "cores": 2, "load": 1.0},
    }


def test_page_tells_how_stages_grow(tmp_path: Path) -> None:
    auc = {"1": 90.0, "3": 97.0, "5": 98.0}
    rows = [
        row("sequential", 1000, 2.0, 3e8, pairs=10),
        row("match", 1000, 12.0, 4e8, pairs=10_000),
        row("match", 10_000, 42.0, 4.4e8, pairs=100_000),
        row("match", 10_000, 102.0, 7.6e8, pairs=100_000),  # the last counts
        {**row("verify", 2000, 1.0, 1e8), "failure": "stopped: its time was up"},
        row(
            *("map partitioned", 1000, 300.0, 9e8),
            **{"registered": 1000, "models": 1, "points": 5, "auc": auc},
            **{"error_px": 0.8, "median_error_m": 0.0123},
        ),
    ]
    table.write(rows, tmp_path / "scale.md")
    page = (tmp_path / "scale.md").read_text("utf-8")
    assert "| match | 10,000 | 204 | 102 | 760 | 5 | 1.00 | 40.0 | 0.3 | 4.4 |" in page
    assert "- match, 10,000 images: pairs 100,000" in page
    assert (
        "| partitioned | 1,000 | 1,000 | 1 | 90.0 / 97.0 / 98.0 | 0.012 | 0.80 | 600"
        " | 300 | 900 | 400 |  |  |  |  |"
    ) in page
    assert "- 2,000 verify: stopped: its time was up" in page

    readme = tmp_path / "README.md"
    with pytest.raises(ValueError, match="lacks the lines <!-- scale: begin -->"):
        readme.write_text("nothing")
        table.write_short(rows, readme)
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write_short([*rows, row("database", 10_000, 18.0, 5e8)], readme)
    assert readme.read_text("utf-8").splitlines() == [
        *("before", table.BEGIN, ""),
        "| made images | pairs, CPU min | matches, CPU min | verification, CPU min"
        " | mapping, CPU min | checks, CPU min | report, points, dataset, CPU min"
        " | most memory of a process | disk |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 1,000 | – | – | – | 5.0 | – | – | 0.9 GB | 0.0 GB |",
        "| 10,000 | – | 2.0 | – | – | – | – | 0.8 GB | 0.0 GB |",
        *("", table.END, "after"),
    ]


@pytest.mark.parametrize("num_images", [30, 1000, 10_000])
def test_a_larger_city_is_walked_as_often(num_images: int) -> None:
    city = City(num_images=num_images)
    _, centres = city.poses()
    assert len(centres) == num_images == len(set(city.names))
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert np.median(steps) < 2.5
    side = np.ptp(centres[:, :2], axis=0).max()
    assert side < 60 * city.blocks
