"""Whole runs: the tests, photographs to poses, several processes, and a training."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from sfmprep.config import CompactConfig
from sfmprep.config.load import load_recipe
from sfmprep.demo.courtyard import render_demo_scene
from sfmprep.devices import num_cores
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.models.extractors.compact import Compact
from sfmprep.pipelines.artefacts import read_result
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.train.matcher.data import MAX_COUNT
from sfmprep.train.matcher.train import export_weights, train_matcher
from sfmprep.weights import resolve_weights
from tests.bench.gpu.told import PeakMemory, Told
from tests.bench.shared import SHARED

ROOT = Path(__file__).resolve().parents[3]
_TEST_S = 60  # the most that one test may take
_END_S = 25.0  # of a training: the last measure, checkpoint and export


# ------------------------------------------------------------------------------- tests
def tests(told: Told) -> None:
    """The tests that need a GPU; on a CPU, the same on the CPU where they can."""
    files = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text("utf-8")
    ]
    report = told.scratch / "tests.xml"
    # of the machine's own plugins some may not fit this pytest
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    env["SFMPREP_TEST_DEVICE"] = told.device
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            f"--timeout={_TEST_S}",
            f"--junitxml={report}",
            *files,
        ],
        cwd=ROOT,
        env=env,
        check=False,
    )
    cases = ElementTree.parse(report).findall(".//testcase")
    bad = {
        f"{case.get('classname')}.{case.get('name')}": (problem.get("message") or "")
        for case in cases
        for problem in case
        if problem.tag in ("failure", "error")
    }
    skipped = sum(any(x.tag == "skipped" for x in case) for case in cases)
    told["files"] = len(files)
    told["passed"] = len(cases) - len(bad) - skipped
    told["skipped"] = skipped
    told["failed"] = {name: text[:600] for name, text in bad.items()}
    if done.returncode:
        sys.exit(1)


# --------------------------------------------------------------- photographs to poses
def pictures(told: Told) -> None:
    """Renders the capture, beside the other parts; `done` is made last."""
    count, size = (10, (320, 240)) if told.is_small else (200, (960, 720))
    scene = told.scratch / "scene"
    if not (scene / "done").is_file():
        render_demo_scene(scene, num_images=count, size=size)
        (scene / "done").touch()


def _await_pictures(told: Told) -> Path:
    scene = told.scratch / "scene"
    while not (scene / "done").is_file() and told.seconds_left > 20:
        time.sleep(0.2)
    if not (scene / "done").is_file():
        raise SystemExit("the photographs were not rendered in time")
    return scene


def capture(told: Told) -> None:
    """Photographs of the demo scene to poses, by recipe, with the seconds a stage."""
    began = time.monotonic()
    scene = _await_pictures(told)
    told["waited_s"] = round(time.monotonic() - began, 1)
    told["images"] = len(list((scene / "images").iterdir()))
    recipes = ("compact",) if told.is_small else ("splat", "fast", "compact")
    for name in recipes:
        if told.seconds_left < 20 and not told.is_small:
            return
        out = told.scratch / f"capture-{name}"
        found: dict[str, Any] = {}
        begin = time.monotonic()
        try:
            with PeakMemory() as peak:
                report = reconstruct(
                    *(scene / "images", out, load_recipe(name)), device=told.device
                )
            evaluation = evaluate_model(read_result(out), read_reference(scene))
            found = {
                "registered": evaluation.registered,
                "auc": {str(k): v for k, v in evaluation.auc.items()},
                "stages": report.seconds,
                "peak_gpu_bytes": peak.bytes,
            }
        finally:  # also where time is over
            found["seconds"] = round(time.monotonic() - begin, 1)
            found["ledger"] = _stage_seconds(out / "work" / "stages.json")
            told[name] = found


def _stage_seconds(path: Path) -> dict[str, float]:
    """What every stage took that has ended, by the file of what is done."""
    if not path.is_file():
        return {}
    stages = json.loads(path.read_text("utf-8"))
    records = stages.get("stages", stages)
    return {
        name: record["seconds"]
        for name, record in records.items()
        if isinstance(record, dict) and record.get("seconds") is not None
    }


def processes(told: Told) -> None:
    """Two processes on one device do what one does."""
    images = SHARED / "data" / "scenes" / "fountain-P11" / "images"
    size = 256 if told.is_small else 1024
    settings = [f"features.max_size={size}", "mapping.type=none", "beside=null"]
    recipe = load_recipe("fast", settings)
    for name, device in (
        ("one", told.device),
        ("two", f"{told.device},{told.device}"),
    ):
        out = told.scratch / f"processes-{name}"
        report = reconstruct(images, out, recipe, device=device)
        told[name] = {
            "stages": report.seconds,
            "rungs": [rung.model_dump(mode="json") for rung in report.rungs],
        }


# ---------------------------------------------------------------------------- training
def train(told: Told) -> None:
    """The compact matcher from where it is, for the seconds that are left."""
    out = told.scratch / "training"
    shutil.rmtree(out, ignore_errors=True)
    captures = [
        folder
        for name in ("splat", "fast", "compact")
        if (folder := told.scratch / f"capture-{name}" / "sparse" / "0").is_dir()
    ]
    cores = num_cores()
    try:
        train_matcher(
            data=SHARED / "data" / "train" / "images",
            out=out,
            minutes=max(told.seconds_left - _END_S, 1) / 60,
            extractor=Compact(CompactConfig(max_keypoints=MAX_COUNT)),
            captures=[folder.parents[1] for folder in captures[:1]],
            init=resolve_weights("compact-lightglue").path,
            size=64 if told.is_small else 256,
            batch=2 if told.is_small else 32,
            num_threads=max(1, min(8, cores // 2)),
            device=told.device,
            steps=3 if told.is_small else None,
        )
        export_weights(out / "matcher.pt", told.results / "matcher.safetensors")
    finally:  # also where time is over, of which a minute is lost at most
        for name in ("matcher.pt", "matcher.jsonl"):
            if (out / name).is_file():
                shutil.copy(out / name, told.results / name)
        told["captures"] = len(captures[:1])
        told["log"] = _read_log(out / "matcher.jsonl")


def _read_log(path: Path) -> dict[str, Any]:
    """The first and last of what was measured, and the speed."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    speed = [row for row in rows if "pairs_per_s" in row]
    measured = [row for row in rows if "pairs_per_s" not in row]
    found: dict[str, Any] = {
        "measured": [measured[0], measured[-1]] if measured else []
    }
    if speed:
        found["steps"] = speed[-1]["step"]
        found["pairs_per_s"] = math.fsum(r["pairs_per_s"] for r in speed) / len(speed)
        found["last"] = speed[-1]
    return found
