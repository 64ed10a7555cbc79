"""report.html: complete, escaped, small, and quiet in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfmprep.report.page import write_page
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


def test_failed_run_has_a_page_that_says_why(run: Run, tmp_path: Path) -> None:
    page = write(run, tmp_path, models=[])
    assert "No poses were found" in page and 'id="scene"' not in page
    assert "Left out: 8 photographs" in page


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
