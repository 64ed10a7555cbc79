"""A full disk: at some of all the calls that write, and at some sizes of a real one."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture import runs, scene
from tests.torture.reference import Reference, go_on

_NUMBERS = (errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EIO)
_STEPS = 12  # of one disk
# what tells that it is the disk, and what to do
_TOLD = (
    *("disk is full", "disk space", "free space", "database or disk is full"),
    "disk I/O error",
    *("the disk does not take it", "its disk is there"),
)


@dataclass(kw_only=True)
class Full:
    """What full disks left."""

    num_faults: int = 0  # runs that met one
    num_folders: int = 0  # that went on to their end, once there was space
    faults: list[str] = field(default_factory=list)


def full_at_writes(
    reference: Reference, folder: Path, num_faults: int, seed: int, until: runs.Until
) -> Full:
    """All calls fail from some write of a stage on; with space the run goes on."""
    rng = random.Random(seed)
    found = Full()
    out = folder / "out"
    waiting: list[str] = []
    while not found.num_folders or (
        found.num_faults < num_faults and not runs.is_over(until)
    ):
        if len(waiting) < 8:
            waiting += rng.sample([*reference.writes], len(reference.writes))
        legs, waiting = waiting[:8], waiting[8:]
        legs.sort(key=[*reference.writes].index)
        shutil.rmtree(out, ignore_errors=True)
        for stage in legs[: num_faults - found.num_faults]:
            at = rng.randrange(reference.writes[stage])
            number = rng.choice(_NUMBERS)

            def prepare(stage: str = stage, at: int = at, number: int = number) -> None:
                runs.at_stage(stage, lambda: runs.arm(out, fault=number, at=at))

            ended = runs.run(scene.command(reference.images, out), folder, prepare)
            where = f"{stage}, write {at}, {errno.errorcode[number]} (seed {seed})"
            _judge(found, reference, ended, out, where)
        found.num_folders += 1
        found.faults += go_on(reference, out, folder, f"full at {legs} (seed {seed})")
    return found


def full_at_sizes(
    reference: Reference, folder: Path, num_sizes: int, seed: int, until: runs.Until
) -> Full:
    """A disk in memory that grows step by step; needs root."""
    rng = random.Random(seed)
    whole = sum(p.stat().st_size for p in reference.out.rglob("*") if p.is_file())
    found = Full()
    while not found.num_folders or (
        found.num_faults < num_sizes and not runs.is_over(until)
    ):
        steps = min(_STEPS, num_sizes - found.num_faults)
        sizes = sorted(rng.uniform(0.002, 1.05) * whole for _ in range(steps))
        with disk(folder / "disk", sizes[0]) as place:
            out = place / "out"
            for size in sizes:
                resize(place, size)
                ended = runs.run(scene.command(reference.images, out), folder)
                if ended.code == reference.code:
                    break  # it fits
                _judge(found, reference, ended, out, f"{size / 1e6:.2f} MB")
            resize(place, 4 * whole)
            found.num_folders += 1
            found.faults += go_on(reference, out, folder, f"sizes {sizes}")
    return found


def _judge(
    found: Full, reference: Reference, ended: runs.Ended, out: Path, where: str
) -> None:
    """A run that met a full disk ends with 1, says so, names a path, and advises."""
    found.num_faults += 1
    if ended.fault:
        found.faults.append(f"{where}: {ended.fault}: {ended.err[-900:]}")
    elif ended.code == reference.code:
        return  # what failed there is not needed
    elif ended.code != 1:
        found.faults.append(f"{where}: exit code {ended.code}: {ended.err[-300:]}")
    elif str(out) not in ended.message or not any(t in ended.message for t in _TOLD):
        found.faults.append(f"{where}: it says: {ended.message}")


# ---------------------------------------------------------------------------- disks
def can_mount(folder: Path) -> bool:
    """Whether a disk in memory can be had here."""
    try:
        with disk(folder / "try", 1e5):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def disk(place: Path, num_bytes: float, *options: str) -> Iterator[Path]:
    """A disk in memory of this size.

    Raises:
        OSError, CalledProcessError: it cannot be mounted.
    """
    place.mkdir(parents=True, exist_ok=True)
    size = f"size={_pages(num_bytes)}"
    said = ",".join((size, *options))
    _call("mount", "-t", "tmpfs", "-o", said, "tmpfs", str(place))
    try:
        yield place
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            _call("umount", "-l", str(place))


def resize(place: Path, num_bytes: float) -> None:
    """Gives a disk another size, which holds what is on it."""
    with contextlib.suppress(subprocess.CalledProcessError):  # below what is there
        _call("mount", "-o", f"remount,size={_pages(num_bytes)}", str(place))


def _pages(num_bytes: float) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    return max(int(num_bytes) // page, 1) * page


def _call(*command: str) -> None:
    # what is mounted is no part of a run
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    subprocess.run(command, check=True, capture_output=True, env=env)
