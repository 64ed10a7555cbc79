"""What a terminal shows: log, progress, and lines wrapped at words.

This is the only place with log handlers and progress bars. Piped output stays plain.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from sfmprep.errors import ConfigError
from sfmprep.progress import T

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30
_UNSTEADY = "map"  # it slows down with every image, so no time left is shown
_NARROWEST = 20


# ------------------------------------------------------------------------------- text
def wrapped(text: str, width: int | None) -> str:
    """Text with its lines broken between words, further ones indented by two more.

    Words longer than a line, such as paths, stay whole.

    Args:
        text: One or more lines.
        width: Columns, or None for no breaks at all.
    """
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        lines += textwrap.wrap(
            line,
            max(width, _NARROWEST),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def columns(stream: TextIO) -> int | None:
    """How wide a terminal is, by COLUMNS or itself; None for anything else."""
    try:
        if not stream.isatty():
            return None
        named = os.environ.get("COLUMNS", "")
        width = int(named) if named.isdigit() else 0
        return width or os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # closed, or no file at all
        return None


def show(text: str) -> None:
    """Prints a line of the result, on stdout."""
    print(wrapped(text, columns(sys.stdout)))
    _note(text)


def say(text: str) -> None:
    """Prints a line for people, not for pipes, on stderr."""
    print(wrapped(text, columns(sys.stderr)), file=sys.stderr)
    _note(text)


def _note(text: str) -> None:
    """Into the file of `--log`, but not onto the screen once more."""
    logger.info("%s", text, extra={"is_shown": True})


# -------------------------------------------------------------------------------- log
def start_logging(
    verbose: bool, *, quiet: bool = False, file: Path | None = None
) -> None:
    """Shows sfmprep's log on stderr, and COLMAP's only if asked.

    Args:
        verbose: Whether COLMAP's log is shown, too.
        quiet: Whether only warnings are shown, and no progress.
        file: Where everything is added, with times.

    Raises:
        ConfigError: `file` cannot be written.
    """
    screen = _Screen(logging.WARNING if quiet else logging.INFO)
    screen.setFormatter(_Formatter())
    root = logging.getLogger("sfmprep")
    for handler in root.handlers:
        handler.close()
    root.handlers = [screen]
    root.setLevel(logging.INFO)
    if file is not None:
        root.addHandler(_file_handler(file))
    if not verbose:
        _quieten_colmap()


def _quieten_colmap() -> None:
    """Leaves only what ends the process in COLMAP's log.

    Its library takes longer to import than all that comes before the first line on the
    screen, so it is told through glog's variable, if it is not there already.
    """
    os.environ.setdefault("GLOG_minloglevel", "3")
    pycolmap = sys.modules.get("pycolmap")
    if pycolmap is not None:
        pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def _file_handler(file: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the log {file} cannot be written: {error.strerror}. Give --log a file in"
            " a folder that exists."
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


class _Screen(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "is_shown"):
            text = wrapped(self.format(record), columns(sys.stderr))
            tqdm.write(text, file=sys.stderr)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"warning: {text}"


# --------------------------------------------------------------------------- progress
def show_progress(
    items: Iterable[T], *, desc: str, total: int | None = None
) -> Iterable[T]:
    """A bar on a terminal, else a line now and then and one at the end."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if total == 0:
        return items
    return _shown(items, desc, total)


class StageProgress:
    """`show_progress` that says which stage of how many it is: `[3/6] match`."""

    def __init__(self, stages: Sequence[Sequence[str]]) -> None:
        """Takes the stages in their order, each as what its loops are called."""
        self._number = {
            desc: f"[{number}/{len(stages)}] "
            for number, descs in enumerate(stages, 1)
            for desc in descs
        }

    def __call__(
        self, items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterable[T]:
        """Shows the loop with its stage; without one where it belongs to none."""
        return show_progress(
            items, desc=f"{self._number.get(desc, '')}{desc}", total=total
        )


def _shown(items: Iterable[T], desc: str, total: int | None) -> Iterator[T]:
    start = shown = time.monotonic()
    steady = not desc.endswith(_UNSTEADY)
    count = 0
    for item in _with_bar(items, desc, total, steady) if _has_bar() else items:
        yield item
        count += 1
        now = time.monotonic()
        if now - shown > _SECONDS_BETWEEN_LINES and not _has_bar():
            shown = now
            logger.info("%s", progress_line(desc, count, total, now - start, steady))
    logger.info("%s: %d in %.1f s", desc, count, time.monotonic() - start)


def progress_line(
    desc: str, count: int, total: int | None, seconds: float, steady: bool
) -> str:
    """How far a loop is, and the minutes left where its steps take equally long."""
    if total is None:
        return f"{desc}: {count:,}"
    left = seconds / count * (total - count)
    if not steady or count > total:
        return f"{desc}: {count:,} of {total:,}"
    minutes = "less than a minute" if left < 60 else f"about {left / 60:.0f} min"
    return f"{desc}: {count:,} of {total:,}, {minutes} left"


def _has_bar() -> bool:
    screens = (h for h in logging.getLogger("sfmprep").handlers if type(h) is _Screen)
    loud = any(screen.level <= logging.INFO for screen in screens)
    return loud and columns(sys.stderr) is not None


def _with_bar(
    items: Iterable[T], desc: str, total: int | None, steady: bool
) -> Iterable[T]:
    left = "{elapsed}<{remaining}" if steady else "{elapsed}"
    shape = f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}} [{left}]"
    return tqdm(
        items,
        desc=desc,
        total=total,
        dynamic_ncols=True,
        leave=False,
        bar_format=shape if total is not None else None,
    )
