"""Where weights are looked for, and what is said when they are not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sfmprep.weights.resolve as resolve
from sfmprep.errors import WeightsError
from sfmprep.weights import (
    WEIGHTS,
    ResolvedWeights,
    cache_folder,
    file_sha256,
    resolve_weights,
    weights_here,
)
from sfmprep.weights.cache import git_blob
from tests.support.small_weights import CONTENT, CONVERTED, know, sha256

URL = "http://127.0.0.1:9/tiny.pth"


def in_cache(content: bytes = CONTENT) -> Path:
    cached = cache_folder() / f"{sha256(CONTENT)}-tiny.pth"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(content)
    return cached


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def error_of(name: str = "tiny", path: Path | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        resolve_weights(name, path)
    return str(caught.value)


def test_the_first_place_that_has_the_weights_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, URL)
    assert weights_here("tiny") is None
    places = [in_cache()]
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path))  # which has no such file
    contents = {"tiny.pth": CONTENT, "tiny.safetensors": CONVERTED, "mine.pth": b"any"}
    for name, content in contents.items():
        found = resolve_weights("tiny")
        assert found == weights_here("tiny")
        assert found.path == places[-1]
        places.append(tmp_path / name)
        places[-1].write_bytes(content)
    assert resolve_weights("tiny", places[-1]) == ResolvedWeights(
        name="tiny", path=places[-1], sha256=sha256(b"any")
    )


def test_offline_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, URL, file_in_wheel="tiny.pth")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: pytest.fail())
    assert error_of() == (
        f"weights of tiny are not here and SFMPREP_OFFLINE forbids the download of"
        f" {URL}. Put tiny.pth or tiny.safetensors into the folder SFMPREP_WEIGHTS"
        " names, or run `sfmprep weights fetch tiny` where there is a network."
    )
    assert not cache_folder().exists()


def test_damaged_files_here_are_named_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, URL)
    monkeypatch.setenv("SFMPREP_OFFLINE", "0")
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path))
    half = CONTENT[:9]
    for path, expected in (
        (in_cache(half), CONTENT),
        (tmp_path / "tiny.pth", CONTENT),
        (tmp_path / "tiny.safetensors", CONVERTED),
    ):
        path.write_bytes(half)
        assert error_of() == (
            f"weights of tiny: {path} has sha256 {sha256(half)} but expected"
            f" {sha256(expected)}. Delete it, or, if it is a file of your own, name it"
            " in the recipe (`weights: PATH`)."
        )
        assert path.read_bytes() == half


def test_named_places_that_are_not_there_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, URL)
    assert error_of("tiny", tmp_path) == (
        f"weights of tiny: the recipe names {tmp_path}, which is not a file. Correct"
        " the path or remove the key `weights`."
    )
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path / "no"))
    assert error_of() == (
        f"SFMPREP_WEIGHTS names {tmp_path / 'no'}, which is not a folder. Correct or"
        " unset it."
    )


def test_weights_that_nobody_may_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of("s2ld") == (
        "weights of s2ld are not here, and sfmprep may not fetch them: Merical/S2LD"
        " states no licence. Ask its author for the file and name it in the recipe"
        " (`weights: PATH`), or put it as s2ld.safetensors into the folder"
        " SFMPREP_WEIGHTS names."
    )
    assert "mihaidusmanu/d2-net states no checksum of its file. Ask" in error_of(
        "d2net"
    )
    know(monkeypatch, None, origin="sfmprep")
    assert error_of() == (
        "weights of tiny are part of sfmprep, but this copy of it lacks them. Install"
        " it again."
    )


def test_weights_whose_licence_has_to_be_accepted_are_not_fetched_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = (
        "weights of superpoint-v1 are not here, and"
        " magicleap/SuperPointPretrainedNetwork allows non-commercial research only:"
        " read https://github.com/magicleap/SuperPointPretrainedNetwork/blob/master/"
        "LICENSE. If you accept it, run `sfmprep weights fetch superpoint-v1"
        " --accept-licence superpoint-v1`; or put superpoint_v1.pth into the folder"
        " SFMPREP_WEIGHTS names."
    )
    asked = []
    monkeypatch.setenv("SFMPREP_OFFLINE", "")
    monkeypatch.setattr(
        resolve, "fetch", lambda entry, _: asked.append(entry.name) or ["no network"]
    )
    assert error_of("superpoint-v1") == message
    with pytest.raises(WeightsError) as error:
        resolve_weights("superpoint-v1", accepted=["superpoint-open"])
    assert str(error.value) == message
    assert asked == []
    with pytest.raises(WeightsError, match="cannot be fetched: no network"):
        resolve_weights("superpoint-v1", accepted=["superpoint-v1"])
    assert asked == ["superpoint-v1"]


def test_a_file_is_known_by_the_checksum_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "superpoint_v6_from_tf.pth"
    path.write_bytes(b"hello\n")
    assert git_blob(path) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git's own
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path))
    assert error_of("superpoint-open") == (
        f"weights of superpoint-open: {path} has git blob"
        " ce013625030ba8dba906f756967f9e9ca394464a but expected"
        " f645e8db1b10a7be84d4e50d67a3c64dd240a49a. Delete it, or, if it is a file of"
        " your own, name it in the recipe (`weights: PATH`)."
    )


def test_every_address_has_a_checksum() -> None:
    fetched = [entry for entry in WEIGHTS.values() if entry.url]
    assert len(fetched) > 10
    for entry in fetched:
        assert len(entry.sha256 or "") == 64 or len(entry.git_blob or "") == 40
    for entry in WEIGHTS.values():
        assert entry.url or not (entry.sha256 or entry.mirrors or entry.file_in_wheel)


def test_importing_the_registry_imports_no_torch() -> None:
    code = (
        "import sys, sfmprep.weights; print({'torch', 'requests'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == b"set()\n"


@pytest.mark.shared
def test_the_converted_checksums_are_those_of_the_real_files(
    real_weights: Path,
) -> None:
    known = [entry for entry in WEIGHTS.values() if entry.converted_sha256]
    assert len(known) == 7
    for entry in known:
        path = real_weights / f"{entry.name}.safetensors"
        assert file_sha256(path) == entry.converted_sha256
        assert resolve_weights(entry.name).path == path
