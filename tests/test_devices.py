"""How many cores there are: affinity, and the quotas of containers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from sfmprep import devices
from sfmprep.cli import options


def groups(root: Path, own: str, **files: str) -> Path:
    """A system whose process is in the groups `own`, with files of `sys/fs/cgroup`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("_", ".", 1)).write_text(text)
    return root


def test_a_quota_of_cgroup_v2_counts(tmp_path: Path) -> None:
    root = groups(tmp_path, "0::/\n", cpu_max="250000 100000\n")
    assert devices._quota(root) == 2.5


def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    root = groups(
        tmp_path,
        "0::/slice/job\n",
        slice__cpu_max="300000 100000\n",
        slice__job__cpu_max="max 100000\n",
    )
    assert devices._quota(root) == 3


def test_a_quota_of_cgroup_v1_counts(tmp_path: Path) -> None:
    root = groups(
        tmp_path,
        "3:cpuset:/\n2:cpu,cpuacct:/job\n1:memory:/\n0::/\n",
        **{
            "cpu,cpuacct__job__cpu_cfs_quota_us": "150000\n",
            "cpu,cpuacct__job__cpu_cfs_period_us": "100000\n",
            "cpu,cpuacct__cpu_cfs_quota_us": "-1\n",
            "cpu,cpuacct__cpu_cfs_period_us": "100000\n",
        },
    )
    assert devices._quota(root) == 1.5


@pytest.mark.parametrize("own", ["", "0::/\n", "1:cpu:/\n", "0::/../..\n"])
def test_without_a_quota_there_is_no_limit(tmp_path: Path, own: str) -> None:
    assert devices._quota(groups(tmp_path, own)) == math.inf


def test_a_system_without_groups_has_no_limit(tmp_path: Path) -> None:
    assert devices._quota(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("quota", "expected"), [(math.inf, 8), (2.5, 3), (0.2, 1), (64, 8)]
)
def test_cores_are_those_of_affinity_and_quota(
    quota: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr(devices, "_quota", lambda root: quota)
    assert devices.num_cores() == expected


def test_the_program_heeds_a_quota_below_its_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr(options, "limit_threads", chosen.append)
    monkeypatch.setattr(devices, "_quota", lambda root: math.inf)
    options.heed_quota()
    assert chosen == []
    monkeypatch.setattr(devices, "_quota", lambda root: 2.0)
    options.heed_quota()
    assert chosen == [2]


@pytest.mark.parametrize(
    ("flags", "does"),
    [("fpu avx512f avx512_bf16", True), ("amx_bf16", True), ("avx512f bf16x", False)],
)
def test_a_cpu_multiplies_bfloat16_if_a_flag_says_so(
    tmp_path: Path, flags: str, does: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\n")
    assert devices.multiplies_bfloat16(path) is does


def test_a_cpu_of_which_nothing_is_told_does_not_multiply_bfloat16(
    tmp_path: Path,
) -> None:
    assert not devices.multiplies_bfloat16(tmp_path / "missing")
