"""`make gpu`: what is kept of parts that are cut, and what the page makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.gpu import __main__ as driver
from tests.bench.gpu import collect, table

MARKS = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
RATE = {"pairs_per_s": 1234.5, "peak_bytes": 3e9, "most": None}
TOLD: dict[str, Any] = {
    "commit": "0123456789abcdef",
    "parts": {
        name: {"device": "cuda", "status": "done", "seconds": 1.0, "result": result}
        for name, result in {
            "machine": {
                "gpu": "Some GPU",
                "gpu_bytes": 80 * 2**30,
                "cores": 16,
                "versions": {"torch": "2.11", "cudnn": None},
                "copy_bytes_per_s": 3e12,
                "matmul_flops": {"float16": 800e12},
                "float32_errors": {"product, ours": 2e-7},
            },
            "tests": {"passed": 30, "skipped": 2, "failed": {"a.b": "why"}},
            "lightglue": {
                "keypoints": 2048,
                "aliked-lightglue": {
                    "flops_per_pair": 240e9,
                    "plain_one_by_one": 50.0,
                    "batched": {"1": {**RATE, "pairs_per_s": 100.0}, "32": RATE},
                    "hottest": [["gemm", 1.5, 9]],
                },
            },
            "aliked": {
                "size": [1600, 1066],
                "half": {"batched": {"6": {"images_per_s": 123.4, "peak_bytes": 7e9}}},
            },
            "dense": {
                "loftr 640": {
                    **{"images_per_s": 50.0, "pairs_per_s": 20.0, "matches": 9.5},
                    "peak_bytes": 2e9,
                }
            },
            "precision": {
                "XFeat": {
                    "half": {
                        **{
                            "same_keypoints": 0.98,
                            "matches": 700,
                            "same_matches": 0.99,
                        },
                        **{"max_score_difference": 0.0123, "inlier_share": 0.9},
                    }
                }
            },
            "memory": {
                "aliked": {"same_keypoints": 1.0, "remembered": 9, "said": ["x"]}
            },
            "capture": {
                "images": 200,
                "splat": {
                    **{"registered": 200, "auc": {"1": 97.0, "3": 99.0, "5": 99.4}},
                    **{"seconds": 95.2, "stages": {"extract": 4.2}, "ledger": {}},
                },
                "fast": {"seconds": 30.0, "ledger": {"match": 7.7}},
            },
            "train": {
                "log": {
                    **{"steps": 700, "pairs_per_s": 90.0},
                    "measured": [{"step": 0, "loss": 0.5}, {"step": 700, "loss": 0.4}],
                }
            },
        }.items()
    },
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    readme = tmp_path / "README.md"
    readme.write_text(MARKS)
    (tmp_path / "examples").mkdir()
    return readme, tmp_path / "examples" / "gpu.md"


def test_without_results_nothing_is_claimed(files: tuple[Path, Path]) -> None:
    readme, page = files
    table.write({}, readme, page)
    text = table.NOT_YET % "examples/gpu.md"
    expected = f"before\n{table.BEGIN}\n\n{text}\n\n{table.END}\nafter\n"
    assert readme.read_text() == expected
    assert page.read_text().endswith("\n\nIt was not run on a GPU yet.\n")


def test_results_of_a_cpu_are_none_of_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    parts = {"machine": {"device": "cpu", "result": {"cores": 2}}}
    path.write_text(json.dumps({"commit": None, "parts": parts}))
    assert table.read(path) == {}
    assert table.read(tmp_path / "nothing") == {}


def test_every_part_is_on_the_page(files: tuple[Path, Path]) -> None:
    readme, page = files
    table.write(TOLD, readme, page)
    short, text = readme.read_text(), page.read_text()
    assert (
        "| aliked-lightglue, 2048 keypoints, 32 pairs at once | 1234 pairs/s |" in short
    )
    assert "| ALIKED-n16, 1600 pixels | 123 images/s |" in short
    assert "| 200 photographs to poses, `splat` | 95 s |" in short
    assert "`fast` |" not in short  # it was cut
    assert "30 passed, 2 skipped, failed: a.b." in text
    # 1234.5 * 240e9 / 800e12, and 1234.5 / 100
    assert "| aliked-lightglue | 32 | 1234 | 12.3 | 37 % | 3.00 |" in text
    assert "| XFeat | half | 98.0 % | 700 | 99.0 % | 0.0123 | 90.0 % |" in text
    assert "`fast`: 30 s, was cut, 0.00 GB of GPU memory. match 7.7." in text
    assert "| loss | 0.5000 | 0.4000 |" in text
    assert "| `gemm` | 1.50 | 9 |" in text


def test_a_page_of_half_a_run_is_no_error(files: tuple[Path, Path]) -> None:
    for cut in range(len(TOLD["parts"])):
        parts = dict(list(TOLD["parts"].items())[: cut + 1])
        table.write({"commit": None, "parts": parts}, *files)


def test_a_readme_without_the_marks_is_refused(files: tuple[Path, Path]) -> None:
    readme, page = files
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        table.write({}, readme, page)


class Script(driver.Run):
    """A run whose parts are a line of Python each."""

    lines: dict[str, str] = {}

    def start(self, name: str, log: Path, *more: object) -> subprocess.Popen[bytes]:
        out = str(more[1])
        code = f"import json, sys, time, pathlib\nout = pathlib.Path({out!r})\n"
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-I", "-c", code + self.lines[name]],
                stderr=file,
                start_new_session=True,
            )


def test_what_a_part_found_is_kept_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "_LEAST_S", 0.0)
    monkeypatch.setattr(driver, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setitem(driver.LIMITS_S, "aliked", 1.0)
    end = time.monotonic() + 60
    run = Script(tmp_path, {}, "cuda", tmp_path, end)
    run.lines = {
        "machine": "out.write_text(json.dumps({'a': 1}))",
        "lightglue": "out.write_text(json.dumps({'b': 2})); sys.exit('it broke')",
        "aliked": "out.write_text(json.dumps({'c': 3})); time.sleep(60)",
    }
    for name in run.lines:
        run.part(name)
    told = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {n: (p["status"], p["result"]) for n, p in told.items()} == {
        "machine": ("done", {"a": 1}),
        "lightglue": ("failed", {"b": 2}),
        "aliked": ("cut", {"c": 3}),
    }
    assert "it broke" in capsys.readouterr().out
    # what another call leaves out changes nothing
    late = Script(tmp_path, {}, "cuda", tmp_path, time.monotonic() - 1)
    late.part("dense")
    told = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(told) == ["machine", "lightglue", "aliked"]
    assert capsys.readouterr().out == (
        "      dense: left out, as the minutes are over\n"
    )


def test_too_much_to_travel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    collect.check_size(tmp_path)
    monkeypatch.setattr(collect, "MAX_BYTES", 999)
    with pytest.raises(SystemExit, match="Leave something out"):
        collect.check_size(tmp_path)
