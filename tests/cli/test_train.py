"""What `sfmprep train` hands on of its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfmprep.cli import train
from sfmprep.errors import ConfigError
from sfmprep.train.extractor import train as extractor
from sfmprep.train.matcher import train as matcher
from sfmprep.weights import resolve_weights


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of the training that was called."""
    seen: dict[str, Any] = {}

    def remember(**arguments: Any) -> int:
        seen.update(arguments)
        return 1

    monkeypatch.setattr(matcher, "train_matcher", remember)
    monkeypatch.setattr(extractor, "train_extractor", remember)
    monkeypatch.setattr(train, "start_logging", lambda **_: None)
    return seen


def run(kind: str, folder: Path, *more: str) -> None:
    train.main([kind, "--data", str(folder), "--out", str(folder), *more])


def test_the_head_and_the_start_of_a_matcher(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    run("matcher", tmp_path)
    assert (asked["head"], asked["init"]) == ("lightglue", None)
    run("matcher", tmp_path, "--head", "sinkhorn", "--init", "compact")
    assert asked["head"] == "sinkhorn"
    assert asked["init"] == resolve_weights("compact-lightglue").path


def test_the_losses_and_the_start_of_an_extractor(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    run("extractor", tmp_path)
    assert (asked["also"], asked["init"]) == ((), None)
    own = tmp_path / "own.safetensors"
    own.touch()
    both = ("reliability", "repeatability")
    run("extractor", tmp_path, "--init", str(own), "--also", *both)
    assert (asked["also"], asked["init"]) == (both, own)


@pytest.mark.parametrize("kind", ["extractor", "matcher"])
def test_a_start_that_is_not_there_is_refused(
    kind: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(kind, tmp_path, "--init", "nowhere.safetensors")
    assert str(caught.value) == (
        "--init nowhere.safetensors: expected compact, for the weights inside the"
        " package, or a .safetensors file, and there is no such file."
    )
    assert not asked
