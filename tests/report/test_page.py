"""report.html: complete, escaped, small, and quiet in a browser."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.developed import Developed, Film
from sfmprep.report.collect import device_name
from sfmprep.report.page import write_page
from sfmprep.report.scene import scene_data
from sfmprep.report.schema import PairWay
from sfmprep.report.sections import file_size
from tests.support.synthetic_run import Run, synthesize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def write(run: Run, folder: Path, **changes: Any) -> str:
    report = run.report(**changes)
    path = folder / "report.html"
    model = run.model if report.result else None
    write_page(
        path, report, run.images, model=model, features=None, database=run.database
    )
    return path.read_text("utf-8")


def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def without_plotly(page: str) -> str:
    """The page without its longest script."""
    return page.replace(
        max(re.findall(r"<script>.*?</script>", page, re.S), key=len), ""
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return synthesize(tmp_path)


def test_page_asks_for_nothing_outside(run: Run, tmp_path: Path) -> None:
    page = write(run, tmp_path)
    assert "default-src 'none'" in page
    assert "http" not in without_plotly(page).replace("http-equiv", "")
    assert len(page) < 6_000_000


def test_names_and_reasons_are_escaped(run: Run, tmp_path: Path) -> None:
    nasty = "</script><img src=x onerror=alert(1)>.jpg"
    page = write(run, tmp_path, unreadable={nasty: "<b>broken</b>"})
    assert "<img" not in without_plotly(page)
    assert "<b>broken" not in without_plotly(page)
    assert nasty in [row[0] for row in embedded(page)["images"]]


def test_packed_points_are_those_of_the_model(run: Run, tmp_path: Path) -> None:
    page = write(run, tmp_path, world={"up": "gravity"})  # so that nothing is turned
    scene = embedded(page)["scene"]
    packed = np.frombuffer(base64.b64decode(scene["points"]), "<i2").reshape(-1, 3)
    drawn = packed * scene["step"] + scene["low"]
    points = np.array([p.xyz for p in run.model.points3D.values()])
    nearest = np.linalg.norm(drawn[:, None] - points, axis=2).min(axis=1)
    assert len(drawn) > 0.9 * len(points)
    assert nearest.max() <= scene["step"]
    first = run.image(scene["names"][0])
    assert scene["frusta"][0][0] == pytest.approx(
        first.projection_center().tolist(), abs=1e-4
    )


def test_scene_without_world_frame_is_turned_upright(run: Run, tmp_path: Path) -> None:
    scene = embedded(write(run, tmp_path))["scene"]
    frusta = np.array(scene["frusta"])
    up = frusta[:, 1] - frusta[:, 4]  # from the lower to the upper left corner
    mean = up.mean(axis=0) / np.linalg.norm(up.mean(axis=0))
    assert mean == pytest.approx([0, 0, 1], abs=1e-3)


def test_page_of_many_images_holds_some_of_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfmprep.report.page._MAX_ROWS", 5)
    monkeypatch.setattr("sfmprep.report.scene._MAX_FRUSTA", 3)
    names = [image.name for image in run.model.images.values()]
    page = write(
        run, tmp_path, unreadable={"a.jpg": "broken"}, outliers={names[4]: "far"}
    )
    data = embedded(page)
    assert data["num_images"] == len(names) + 1
    rows = {row[0]: row[1] for row in data["images"]}
    assert 3 <= len(rows) <= 5
    assert rows["a.jpg"] == "unreadable" and rows[names[4]] == "outlier"
    scene = data["scene"]
    assert len(scene["names"]) == len(scene["frusta"]) == len(scene["outlier"]) == 3
    assert names[4] in scene["names"] and sum(scene["outlier"]) == 1


def test_failed_run_has_a_page_that_says_why(run: Run, tmp_path: Path) -> None:
    page = write(run, tmp_path, models=[])
    assert "No poses were found" in page and 'id="scene"' not in page
    assert "Left out: 8 photographs" in page


# -------------------------------------------------------------------------- first look
def test_next_steps_settings_and_versions_are_in_the_page(
    run: Run, tmp_path: Path
) -> None:
    page = without_plotly(write(run, tmp_path, next_steps=["brush '/my out'"]))
    assert "<pre>brush &#39;/my out&#39;</pre>" in page
    assert "<pre>sfmprep reconstruct /photos /out --recipe /out/recipe.yaml</pre>" in (
        page
    )
    assert "max_keypoints: 8192" in page
    assert f"pycolmap {importlib.metadata.version('pycolmap')}," in page


def test_page_of_what_is_not_worth_training_on_has_no_training_command(
    tmp_path: Path,
) -> None:
    page = without_plotly(write(synthesize(tmp_path, num_frames=4), tmp_path))
    assert "brush /out" not in page
    assert '<div class="finding blocks"><p><b>The dataset has 4 photographs:' in page
    assert (
        "<ol><li>Take 20 or more, a step apart, from all sides that are to be seen."
        "</li><li>Run the same command again:</li></ol>"
    ) in page


def test_causes_are_grouped_not_one_card_a_photograph(run: Run, tmp_path: Path) -> None:
    broken = {f"broken{k:03}.jpg": "truncated" for k in range(400)}
    page = without_plotly(write(run, tmp_path, unreadable=broken))
    assert "<h3>cannot be used: 400 photographs</h3>" in page
    assert page.count('<div class="card">') == 4
    assert page.count("<li><b>broken") == 300
    assert "<p>96 more are in the table below.</p>" in page


def test_copies_are_listed_with_what_is_used(run: Run, tmp_path: Path) -> None:
    assert "<h2>Copies" not in write(run, tmp_path)
    copies = {f"<b> ({k:03}).jpg": "b.jpg" for k in range(301)}
    run.images = replace(run.images, copies=copies)
    page = write(run, tmp_path)
    assert "<h2>Copies: 301 files</h2>" in page
    assert "<li><b>&lt;b&gt; (299).jpg</b>: as b.jpg</li>" in page
    assert "(300).jpg</b>" not in page
    assert "<p>1 more are in report.json.</p>" in page


def test_films_have_a_strip_of_frames_with_their_sharpness(
    run: Run, tmp_path: Path
) -> None:
    names = run.images.names
    film = Film(
        name="walk.mp4",
        seconds=10.0,
        lost_seconds=0.0,
        num_frames=300,
        frames=names,
        times=tuple(float(k) for k in range(len(names))),
        segments=(0,) * len(names),
        num_blurred=9,
        num_blurred_used=1,
        num_thinned=4,
        most_new=0.2,
        share_turned=0.0,
        curve=((0.0, 1.0), (10.0, 2.0)),
    )
    developed = Developed(
        source=tmp_path / "walk.mp4",
        folder=run.images.root,
        names=frozenset(names),
        checksums={},
        failures={},
        films=(film,),
    )
    run.images = replace(run.images, developed=developed)
    page = without_plotly(write(run, tmp_path))
    part = page.partition("<h2>Films</h2>")[2].partition("</section>")[0]
    assert part.count("<figure><svg") == len(names) == 8
    assert "<figcaption>3.0 s, sharpness 1.3</figcaption>" in part
    assert (
        "<p>8 of 300 frames in 10.0 s are used; 9 are blurred, of which 1 are used; 4"
        " more show something new, but film.frames limits them.</p>"
    ) in part


def test_ways_of_choosing_pairs_are_counted(run: Run, tmp_path: Path) -> None:
    ways = [
        PairWay(way="retrieval", num_proposed=12345, num_kept=12000),
        PairWay(way="temporal", num_proposed=7, num_kept=7),
    ]
    page = write(run, tmp_path, pair_ways=ways)
    assert '<th scope="row">retrieval</th><td>12,345</td><td>12,000</td>' in page
    assert '<th scope="row">temporal</th><td>7</td><td>7</td>' in page
    assert '<th scope="col">matched</th>' in page
    assert "chosen by" not in write(run, tmp_path)


def test_registered_photographs_are_shown(run: Run, tmp_path: Path) -> None:
    page = without_plotly(write(run, tmp_path))
    sheet = page.partition('<div class="sheet">')[2].partition("</section>")[0]
    assert sheet.count("<svg") == 8
    assert f"<figcaption>{run.images.names[0]}: " in sheet


@pytest.mark.parametrize(
    ("make", "model", "expected"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("Apple", "iPhone 15", "Apple iPhone 15"),
        ("SONY", "", "SONY"),
        ("", "", ""),
    ],
)
def test_device_names_the_make_once(make: str, model: str, expected: str) -> None:
    assert device_name(make, model) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (999, "1 kB"),
        (433_000, "433 kB"),
        (2_500_000, "2.5 MB"),
        (3_210_000_000, "3.2 GB"),
    ],
)
def test_small_captures_are_not_0_mb(number: int, expected: str) -> None:
    assert file_size(number) == expected


def test_view_is_framed_on_cameras_and_not_on_far_points(run: Run) -> None:
    before = scene_data(run.model, run.images, level=False, outliers=())
    for far in np.random.default_rng(0).normal(0, 1000, (60, 3)):  # 5 % of them
        run.model.add_point3D(far, pycolmap.Track(), np.zeros(3, np.uint8))
    after = scene_data(run.model, run.images, level=False, outliers=())
    assert after["high"][0] - after["low"][0] > 5 * (
        before["high"][0] - before["low"][0]
    )
    assert after["radius"] == pytest.approx(before["radius"], rel=0.05)
    assert after["focus"] == pytest.approx(before["focus"], abs=0.1 * before["radius"])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("models", [None, []], ids=["model", "failed"])
def test_browser_draws_the_page_without_an_error(
    run: Run, tmp_path: Path, models: list[Any] | None
) -> None:
    write(run, tmp_path, **({} if models is None else {"models": models}))
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless=new", "--no-sandbox", "--use-gl=angle"),
            *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
            *("--virtual-time-budget=10000", "--enable-logging=stderr", "--v=0"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in console if ":INFO:CONSOLE" not in line] == []
    assert not re.search("Uncaught|Refused|Content Security Policy", done.stderr)
    body = done.stdout.partition("<tbody>")[2].partition("</tbody>")[0]
    assert body.count("<tr") == 8
    assert ("<canvas" in done.stdout) == (models is None)
    # the table is sorted with buttons, and says how
    head = done.stdout.partition('id="table"')[2].partition("</thead>")[0]
    assert '<th scope="col" aria-sort="ascending"><button type="button">name ▴' in head
    assert head.count("<button") == head.count("<th ") > 5
