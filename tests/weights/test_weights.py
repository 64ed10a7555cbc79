"""Where weights are looked for, and what is said when they cannot be had."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfmprep import weights
from sfmprep.errors import WeightsError
from sfmprep.weights import (
    WEIGHTS,
    ResolvedWeights,
    Weights,
    cache_folder,
    file_sha256,
    load_strict,
    load_tensors,
    resolve_weights,
    weights_here,
)

CONTENT = b"the authors' file"
CONVERTED = b"the converted file"
ADVICE = (
    "Put tiny.safetensors into the folder SFMPREP_WEIGHTS names, or run `sfmprep"
    " weights fetch tiny` where there is a network."
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `/short` breaks off in the middle, `/gone` is not there."""

    def do_GET(self) -> None:
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        missing = 5 if self.path == "/short" else 0
        self.send_header("Content-Length", str(len(CONTENT) + missing))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args: object) -> None:
        """Stays silent."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An own empty cache, no proxy, and the network of this machine only."""
    monkeypatch.setenv("SFMPREP_OFFLINE", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def know(
    monkeypatch: pytest.MonkeyPatch, url: str, checksum: str | None = sha256(CONTENT)
) -> Weights:
    entry = Weights(
        name="tiny",
        url=url,
        sha256=checksum,
        converted_sha256=sha256(CONVERTED),
        licence="MIT",
        origin="nobody/tiny",
    )
    monkeypatch.setattr(weights, "WEIGHTS", {**WEIGHTS, "tiny": entry})
    return entry


def error_of(path: Path | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        resolve_weights("tiny", path)
    return str(caught.value)


def cached() -> list[Path]:
    return list(cache_folder().glob("*")) if cache_folder().is_dir() else []


# ------------------------------------------------------------------------ resolution
def test_the_first_place_that_has_the_weights_is_used(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = know(monkeypatch, f"{server}/tiny.pth")
    assert weights_here("tiny") is None

    downloaded = resolve_weights("tiny")
    cache = cache_folder() / f"{entry.sha256}-tiny.pth"
    assert downloaded == ResolvedWeights(
        name="tiny", path=cache, sha256=sha256(CONTENT)
    )
    assert cached() == [cache]
    assert cache.read_bytes() == CONTENT

    monkeypatch.setenv("SFMPREP_OFFLINE", "1")
    assert resolve_weights("tiny") == weights_here("tiny") == downloaded

    local = tmp_path / "local" / "tiny.safetensors"
    local.parent.mkdir()
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(local.parent))
    assert resolve_weights("tiny") == downloaded  # the folder has no such file
    local.write_bytes(CONVERTED)
    assert resolve_weights("tiny") == ResolvedWeights(
        name="tiny", path=local, sha256=sha256(CONVERTED)
    )

    named = tmp_path / "mine.pth"
    named.write_bytes(b"any content")
    assert resolve_weights("tiny", named) == ResolvedWeights(
        name="tiny", path=named, sha256=sha256(b"any content")
    )


def test_weights_without_a_known_checksum_are_fetched_too(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, f"{server}/tiny.pth", None)
    assert resolve_weights("tiny").sha256 == sha256(CONTENT)
    assert [path.name for path in cached()] == ["unchecked-tiny.pth"]


# ---------------------------------------------------------------------------- errors
def test_another_file_behind_the_url_is_not_kept(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, f"{server}/tiny.pth", "0" * 64)
    assert error_of() == (
        f"weights of tiny: {server}/tiny.pth gave a file of sha256 {sha256(CONTENT)}"
        f" but expected {'0' * 64}; it was not kept. {ADVICE}"
    )
    assert cached() == []


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("gone", "Not Found"),
        ("short", "the transfer stopped after 17 of 22 bytes"),
    ],
)
@pytest.mark.parametrize("checksum", [None, "0" * 64])
def test_a_failed_transfer_leaves_nothing(
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    page: str,
    reason: str,
    checksum: str | None,
) -> None:
    know(monkeypatch, f"{server}/{page}", checksum)
    assert error_of() == (
        f"weights of tiny are not here and {server}/{page} cannot be fetched"
        f" ({reason}). {ADVICE}"
    )
    assert cached() == []


def test_a_refused_connection_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/tiny.pth"
    know(monkeypatch, url)
    assert error_of() == (
        f"weights of tiny are not here and {url} cannot be fetched ([Errno 111]"
        f" Connection refused). {ADVICE}"
    )


def test_offline_nothing_is_fetched(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, f"{server}/tiny.pth")
    monkeypatch.setenv("SFMPREP_OFFLINE", "1")
    assert error_of() == (
        "weights of tiny are not here and SFMPREP_OFFLINE forbids the download of"
        f" {server}/tiny.pth. {ADVICE}"
    )
    assert cached() == []


def test_a_cache_that_cannot_be_made_is_an_error(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, f"{server}/tiny.pth")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "Not a directory" in error_of()


def test_a_damaged_file_here_is_named_and_not_replaced(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = know(monkeypatch, f"{server}/tiny.pth")
    advice = (
        "Delete it, or, if it is a file of your own, name it in the recipe (`weights:"
        " PATH`)."
    )
    cache = cache_folder() / f"{entry.sha256}-tiny.pth"
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"x")
    assert error_of() == (
        f"weights of tiny: {cache} has sha256 {sha256(b'x')} but expected"
        f" {entry.sha256}. {advice}"
    )
    local = tmp_path / "tiny.safetensors"
    local.write_bytes(b"y")
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path))
    assert error_of() == (
        f"weights of tiny: {local} has sha256 {sha256(b'y')} but expected"
        f" {entry.converted_sha256}. {advice}"
    )
    assert (cache.read_bytes(), local.read_bytes()) == (b"x", b"y")


def test_named_places_that_are_not_there_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "http://127.0.0.1:9/tiny.pth")
    assert error_of(tmp_path) == (
        f"weights of tiny: the recipe names {tmp_path}, which is not a file. Correct"
        " the path or remove the key `weights`."
    )
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path / "no"))
    assert error_of() == (
        f"SFMPREP_WEIGHTS names {tmp_path / 'no'}, which is not a folder. Correct or"
        " unset it."
    )


# --------------------------------------------------------------------------- tensors
def resolved(path: Path, name: str = "xfeat") -> ResolvedWeights:
    return ResolvedWeights(name=name, path=path, sha256="")


def test_tensors_of_either_format_are_read_with_dotted_keys(tmp_path: Path) -> None:
    ones, twos = torch.ones(2), torch.full((3, 1), 2.0)
    save_file({"a": ones, "b.c": twos}, tmp_path / "w.safetensors")
    torch.save({"a": ones, "b": {"c": twos}, "epoch": 3}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        found = load_tensors(resolved(tmp_path / name))
        assert found.keys() == {"a", "b.c"}
        assert torch.equal(found["a"], ones)
        assert torch.equal(found["b.c"], twos)


class Unsafe:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"garbage", bytes(100), b"PK\3\4" * 9])
def test_what_holds_no_tensors_is_an_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_tensors(resolved(path))
    assert str(caught.value).startswith(f"weights of xfeat: {path} cannot be read (")


def test_a_checkpoint_without_names_is_an_error(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_tensors(resolved(tmp_path / "w.pth"))
    assert str(caught.value) == (
        f"weights of xfeat: {tmp_path / 'w.pth'} cannot be read (it holds a list, not"
        " named tensors). Expected safetensors or a torch checkpoint; put a good copy"
        " in its place."
    )


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Unsafe(tmp_path / "proof")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        load_tensors(resolved(tmp_path / "w.pth"))
    assert not (tmp_path / "proof").exists()


def test_tensors_that_do_not_fit_the_network_are_an_error(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    fitting = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    load_strict(network, fitting, resolved(tmp_path))
    assert network.bias.item() == 1
    for wrong in (
        {"weight": torch.ones(1, 2)},
        {**fitting, "more": torch.ones(1)},
        {**fitting, "bias": torch.ones(2)},
    ):
        with pytest.raises(WeightsError, match="does not fit the network"):
            load_strict(network, wrong, resolved(tmp_path))


def test_message_about_many_tensors_that_do_not_fit_is_short(tmp_path: Path) -> None:
    network = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(200)))
    with pytest.raises(WeightsError, match=r"Missing key.*0\.weight") as caught:
        load_strict(network, {}, resolved(tmp_path))
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


# ------------------------------------------------------------------------ real files
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
