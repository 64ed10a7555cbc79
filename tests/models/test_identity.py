"""What a model depends on: known without it, and equal to what it says itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    LightGlueConfig,
    LoftrConfig,
    NearestConfig,
    S2ldConfig,
    SiftConfig,
    XFeatStarConfig,
)
from sfmprep.config.base import ModelConfig
from sfmprep.errors import ConfigError, WeightsError
from sfmprep.models.identity import identity
from sfmprep.weights import WEIGHTS, resolve_weights
from tests.support.models import MODELS, every_checkpoint

CONFIGS = [config for model in MODELS for config in every_checkpoint(model)]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_every_model_names_weights_that_there_are(config: ModelConfig) -> None:
    needed = config.needed_weights()
    assert all(name in WEIGHTS and path is None for name, path in needed)
    assert bool(needed) == (config.type not in ("sift", "nearest", "dis"))


def test_every_row_of_weights_is_used() -> None:
    names = {config.weights_name for config in CONFIGS} - {None}
    assert names == set(WEIGHTS)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (AlikedConfig(model="aliked-t16"), "aliked-t16"),
        (LightGlueConfig(model="disk-lightglue"), "disk-lightglue"),
        (S2ldConfig(), "s2ld"),
        (LoftrConfig(), "loftr-outdoor"),
        (XFeatStarConfig(), "xfeat"),
    ],
)
def test_needed_weights_are_named(config: ModelConfig, name: str) -> None:
    assert config.needed_weights() == [(name, None)]
    mine = config.model_copy(update={"weights": Path("a.pth")})
    assert mine.needed_weights() == [(name, Path("a.pth"))]


def test_identity_is_settings_version_and_checksum() -> None:
    assert identity(CompactConfig(max_keypoints=9)) == {
        "config": {
            "type": "compact",
            "max_keypoints": 9,
            "max_size": 1600,
            "min_score": 0.05,
            "nms_radius": 2,
        },
        "version": 1,
        "weights_sha256": resolve_weights("compact").sha256,
        "precision": "float32",
    }
    assert identity(NearestConfig()) == {
        "config": {"type": "nearest", "ratio": 0.8, "min_similarity": None},
        "version": 1,
        "weights_sha256": None,
    }


def test_weights_count_by_content_and_not_by_path(tmp_path: Path) -> None:
    def of(path: Path) -> dict[str, object]:
        made = identity(CompactConfig(weights=path))
        assert str(path) not in json.dumps(made)
        return made

    first, copy, other = (tmp_path / name for name in ("a.pt", "b.pt", "c.pt"))
    first.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"others")
    assert of(first) == of(copy) != of(other)
    assert of(first)["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    packaged = resolve_weights("compact").path
    assert of(packaged) == identity(CompactConfig())


def test_a_raised_version_is_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(SiftConfig())
    monkeypatch.setattr(SiftConfig, "version", 2)
    assert identity(SiftConfig()) == before | {"version": 2} != before


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "half"),
        ("auto", "cuda:0,cuda:1", "half"),
        ("float32", "cuda", "float32"),
        ("half", "cuda:1", "half"),
    ],
)
def test_precision_counts_where_it_changes_numbers(precision, device, expected) -> None:
    made = identity(CompactConfig(), precision=precision, device=device)
    assert made["precision"] == expected
    assert "precision" not in identity(SiftConfig(), precision=precision, device=device)


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="half"):
        identity(SiftConfig(), precision="half")


def test_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="which is not a file"):
        identity(CompactConfig(weights=tmp_path / "none.pt"))


def test_no_network_is_built() -> None:
    code = (
        "import sys; from sfmprep.config import CompactConfig;"
        "from sfmprep.models.identity import identity; identity(CompactConfig());"
        "print({'torch', 'cv2', 'kornia', 'pycolmap', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout.decode().strip() == "set()"
