"""Which devices networks run on, and how many cores there are."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from sfmprep.errors import ConfigError


def pick_device(device: str) -> str:
    """The device or devices to use.

    Raises:
        ConfigError: torch does not have one of them.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    several = "," in device
    for each in device.split(","):
        try:
            # a process that holds no GPU itself leaves it to its workers
            if several and torch.device(each).type == "cuda":
                if (torch.device(each).index or 0) >= torch.cuda.device_count():
                    raise RuntimeError(f"it sees {torch.cuda.device_count()} of them")
            else:
                torch.zeros(1, device=each).cpu()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--device {each}: torch cannot use it ({reason}). See `sfmprep"
                " doctor`."
            ) from error
    return device


@cache
def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has instructions for products of bfloat16, as Linux tells it.

    Elsewhere, and where it cannot be read, False.
    """
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())
    return False


def num_cores() -> int:
    """How many cores this process may use, by its affinity and its cgroups' quotas."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(cores, _quota(Path("/")))))


def _quota(root: Path) -> float:
    """The cores that containers leave to this process, of cgroup v1 or v2."""
    quota = math.inf
    for folder in _cgroups(root):
        with contextlib.suppress(OSError, ValueError):  # there is no limit
            if (file := folder / "cpu.max").is_file():
                most, period = file.read_text("ascii").split()
            else:
                most = (folder / "cpu.cfs_quota_us").read_text("ascii")
                period = (folder / "cpu.cfs_period_us").read_text("ascii")
            if int(most) > 0:  # -1 stands for none
                quota = min(quota, int(most) / int(period))
    return quota


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of the groups that limit this process, each with those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            yield mounted / controllers / group
