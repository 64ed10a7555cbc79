"""What happens to folders during a run: read-only, gone, in use, slow; and clocks."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.torture import runs, scene
from tests.torture.content import content, differences
from tests.torture.full_disk import can_mount, disk
from tests.torture.page import Row
from tests.torture.reference import Reference

_YEAR_S = 365 * 86_400
_TOLD = "is told, and goes on to the same once it is there again"
_SAME = "the same result"
_WHAT = {
    "read-only folders": "output or photographs on a disk that cannot be written",
    "output renamed": "during a stage",
    "output removed": "during a stage",
    "photographs gone": "during a stage",
    "one photograph gone": "during a stage",
    "two runs at once": "reconstruct, report and export while one goes on",
    "clocks": "file times ahead, behind, coarse, all alike; jumps by a year",
    "no file locks": "flock gives ENOLCK, ENOSYS, EOPNOTSUPP, as on network disks",
    "slow disk": "2 and 10 ms for each call that writes or opens a file",
    "Ctrl-C, SIGTERM": "on a disk with 5 ms a call",
}
_EXPECTED = {
    "read-only folders": "is told; photographs may be read-only",
    "output renamed": _TOLD,
    "output removed": "is told; the next run makes it again",
    "photographs gone": _TOLD,
    "one photograph gone": _TOLD,
    "two runs at once": "refused; the first ends as alone",
    "clocks": f"{_SAME}, nothing made twice; another photograph is seen",
    "no file locks": f"{_SAME}, or is told",
    "slow disk": _SAME,
    "Ctrl-C, SIGTERM": "exit code 130, and goes on to the same",
}


class Folders:
    """The cases, on one reference, in one folder."""

    def __init__(
        self,
        reference: Reference,
        folder: Path,
        stages: list[str],
        seed: int,
        until: runs.Until,
    ) -> None:
        self.reference = reference
        self.folder = folder
        self.stages = stages
        self.out = folder / "out"
        self.images = folder / "photographs"
        self.counts: dict[str, int] = {}
        self.faults: dict[str, list[str]] = {}
        self.lacking: dict[str, str] = {}
        self._rng = random.Random(seed)
        self._until = self._until_now = until

    def all(self) -> Iterator[Row]:
        """Every kind, once for each of the stages, or for as many as there is time."""
        told: set[str] = set()
        kinds = (
            *(self.read_only, self.gone_output, self.gone_photographs),
            *(self.two_runs, self.clocks, self.no_locks, self.slow, self.stopped),
        )
        for number, try_kind in enumerate(kinds):
            now = time.monotonic()
            self._until_now = now + (self._until - now) / (len(kinds) - number)
            try_kind()
            for kind in (*self.counts, *self.lacking):
                if kind not in told:
                    yield self._row(kind)
                    told.add(kind)

    def _row(self, kind: str) -> Row:
        if kind in self.lacking:
            return Row.skipped(kind, _WHAT[kind], self.lacking[kind])
        return Row(
            kind=kind,
            what=_WHAT[kind],
            count=self.counts[kind],
            expected=_EXPECTED[kind],
            faults=self.faults.get(kind, ()),
        )

    def _some_stages(self) -> Iterator[str]:
        """All in any order, while there is time; at least one."""
        for number, stage in enumerate(self._rng.sample(self.stages, len(self.stages))):
            if number and runs.is_over(self._until_now):
                return
            yield stage

    # ------------------------------------------------------------------------ kinds
    def read_only(self) -> None:
        """A finished result, and photographs, on a disk that cannot be written."""
        kind = "read-only folders"
        if not can_mount(self.folder):
            self.lacking[kind] = "needs root, to mount"
            return
        with disk(self.folder / "disk", 64e6) as place:
            shutil.copytree(self.reference.images, place / "photographs")
            shutil.copytree(self.reference.out, place / "out")
            shutil.rmtree(place / "out" / "work" / "models")
            (place / "empty").mkdir()
            remount(place, "ro")
            for out in (place / "out", place / "empty", place / "new"):
                ended = self._run(place / "photographs", out)
                self._told(kind, ended, 1, str(out), "Read-only file system")
            for command in ("export", "report", "map", "match"):
                out = place / "out"
                ended = runs.run(
                    [command, str(self.reference.images), str(out)], self.folder
                )
                self._told(kind, ended, 1, str(out), "Read-only file system")
            self._fresh()
            ended = self._run(place / "photographs", self.out)
            self._equal(kind, ended, "read-only photographs")

    def gone_output(self) -> None:
        """The output folder is renamed, or removed, during a stage."""
        for stage in self._some_stages():
            for kind in ("output renamed", "output removed"):
                self._fresh()
                away = self.folder / "away"
                shutil.rmtree(away, ignore_errors=True)

                def take(kind: str = kind, away: Path = away) -> None:
                    if kind.endswith("renamed"):
                        self.out.rename(away)
                    else:
                        shutil.rmtree(self.out)

                ended = self._run(
                    self.images, self.out, lambda s=stage, t=take: runs.at_stage(s, t)
                )
                self._told(kind, ended, 1, str(self.out), at=stage)
                if kind.endswith("renamed"):
                    shutil.rmtree(self.out, ignore_errors=True)
                    away.rename(self.out)
                else:
                    shutil.rmtree(self.out, ignore_errors=True)
                self._goes_on(kind, stage)

    def gone_photographs(self) -> None:
        """The photographs' folder, or one of them, vanishes during a stage."""
        for stage in self._some_stages():
            for kind in ("photographs gone", "one photograph gone"):
                self._fresh()
                where = (
                    self.images
                    if kind == "photographs gone"
                    else (self.images / "0003.jpg")
                )
                away = self.folder / "kept"

                def take(where: Path = where, away: Path = away) -> None:
                    where.rename(away)

                ended = self._run(
                    self.images, self.out, lambda s=stage, t=take: runs.at_stage(s, t)
                )
                if away.exists():
                    away.rename(where)
                # later stages need no photographs, or leave that one out and say so
                if ended.code == 0 or ended.code == self.reference.code:
                    self._count(kind)
                    if (
                        ended.fault
                        or differences(self.reference.content, content(self.out))
                        and str(where) not in ended.err
                    ):
                        self._fault(kind, f"at {stage}: not told: {ended.err[-500:]}")
                else:
                    self._told(kind, ended, 1, str(self.images), at=stage)
                self._goes_on(kind, stage)

    def two_runs(self) -> None:
        """A second run is refused while one goes on, and again once it was killed."""
        kind = "two runs at once"
        for stage in self._some_stages():
            self._fresh()

            def pause(stage: str = stage) -> None:
                runs.at_stage(stage, lambda: os.kill(os.getpid(), signal.SIGSTOP))

            command = scene.command(self.images, self.out)
            first = runs.start(command, self.folder, pause, name="first")
            _wait_for_stop(first.pid)
            for other in ("reconstruct", "report", "export"):
                args = (
                    command
                    if other == "reconstruct"
                    else [other, str(self.images), str(self.out)]
                )
                ended = runs.run(args, self.folder)
                if other == "reconstruct":
                    self._told(kind, ended, 1, str(self.out), "in use", at=stage)
                else:
                    self._told(kind, ended, 1, str(self.out), at=stage)
            os.kill(first.pid, signal.SIGCONT)
            self._equal(kind, runs.finish(first), f"the first, at {stage}")

    def clocks(self) -> None:
        """Times of files that lie ahead, behind, or are coarse; a clock that jumps."""
        kind = "clocks"
        now = time.time()
        for what, when in (
            *(("the year 2100", 130 * _YEAR_S), ("the year 1970", 1.0)),
            *(("whole seconds", float(int(now))), ("all alike", now)),
        ):
            shutil.rmtree(self.out, ignore_errors=True)
            shutil.copytree(self.reference.out, self.out)
            self._copy_photographs()
            for path in (*self.out.rglob("*"), *self.images.iterdir()):
                os.utime(path, (when, when))
            ended = self._run(self.images, self.out)
            self._equal(kind, ended, what)
            if " extract: " in ended.err:
                self._fault(kind, f"{what}: features were made again")
            # a photograph of the same size and time, which is another one
            self._swap(when)
            ended = self._run(self.images, self.out)
            is_seen = ended.code in (0, 3) and "changed" in ended.err
            # the file system says in what moment it was changed, if not when
            if not is_seen or ended.fault:
                self._fault(kind, f"{what}: another photograph was not seen")
            self._count(kind)
        for stage in self._some_stages():
            for jump in (-_YEAR_S, _YEAR_S):
                self._fresh()

                def leap(jump: float = jump) -> None:
                    told, told_ns = time.time, time.time_ns
                    time.time = lambda: told() + jump
                    time.time_ns = lambda: told_ns() + int(1e9 * jump)

                ended = self._run(
                    self.images, self.out, lambda s=stage, f=leap: runs.at_stage(s, f)
                )
                self._equal(kind, ended, f"a jump at {stage}")

    def no_locks(self) -> None:
        """A network disk that knows no locks."""
        kind = "no file locks"
        if runs.library() is None:
            self.lacking[kind] = "needs a C compiler"
            return
        for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            self._fresh()
            ended = self._run(
                self.images, self.out, lambda n=number: runs.arm(self.out, lock_fault=n)
            )
            if ended.code in (0, 3):
                self._equal(kind, ended, errno.errorcode[number])
            else:
                self._told(kind, ended, 1, str(self.out), "has no file locks")

    def slow(self) -> None:
        """Every write, and every opening of a file, takes longer."""
        kind = "slow disk"
        if runs.library() is None:
            self.lacking[kind] = "needs a C compiler"
            return
        for delay in (0.002, 0.01):
            self._fresh()
            ended = self._run(
                self.images,
                self.out,
                lambda d=delay: runs.arm(self.folder, delay_s=d),
            )
            self._equal(kind, ended, f"{1000 * delay:.0f} ms")

    def stopped(self) -> None:
        """Ctrl-C and SIGTERM on a slow disk."""
        kind = "Ctrl-C, SIGTERM"
        for stage in self._some_stages():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._fresh()

                def stop(number: int = number) -> None:
                    if runs.library() is not None:
                        runs.arm(self.folder, delay_s=0.005)
                    os.kill(os.getpid(), number)

                ended = self._run(
                    self.images, self.out, lambda s=stage, f=stop: runs.at_stage(s, f)
                )
                self._count(kind)
                if ended.code != 130 or ended.fault:
                    self._fault(kind, f"at {stage}: {ended.code} {ended.err[-300:]}")
                self._goes_on(kind, stage)

    # ----------------------------------------------------------------------- parts
    def _run(
        self, images: Path, out: Path, prepare: Callable[[], object] = lambda: None
    ) -> runs.Ended:
        return runs.run(scene.command(images, out), self.folder, prepare)

    def _fresh(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self._copy_photographs()

    def _copy_photographs(self) -> None:
        shutil.rmtree(self.images, ignore_errors=True)
        shutil.copytree(self.reference.images, self.images)

    def _swap(self, when: float) -> None:
        """Flips a bit in the middle of a photograph; size and time stay."""
        path = self.images / "0003.jpg"
        bytes_ = bytearray(path.read_bytes())
        bytes_[len(bytes_) // 2] ^= 1
        path.write_bytes(bytes_)
        os.utime(path, (when, when))

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def _fault(self, kind: str, text: str) -> None:
        self.faults.setdefault(kind, []).append(text)

    def _told(
        self, kind: str, ended: runs.Ended, code: int, *words: str, at: str = ""
    ) -> None:
        """A run that cannot go on says where and why."""
        self._count(kind)
        if ended.fault:
            self._fault(kind, f"{at}: {ended.fault}: {ended.err[-900:]}")
        elif ended.code != code or not all(w in ended.message for w in words):
            self._fault(kind, f"{at}: code {ended.code}, it says: {ended.err[-400:]}")

    def _equal(self, kind: str, ended: runs.Ended, what: str) -> None:
        """A run that the fault does not matter to."""
        self._count(kind)
        if ended.code != self.reference.code or ended.fault:
            self._fault(kind, f"{what}: {ended.code} {ended.err[-500:]}")
        elif other := differences(self.reference.content, content(self.out)):
            self._fault(kind, f"{what}: other than uninterrupted: {other}")

    def _goes_on(self, kind: str, at: str) -> None:
        ended = self._run(self.images, self.out)
        if ended.code != self.reference.code or ended.fault:
            self._fault(kind, f"at {at}: does not go on: {ended.err[-500:]}")
        elif other := differences(self.reference.content, content(self.out)):
            self._fault(kind, f"at {at}: goes on to something else: {other}")


def _wait_for_stop(pid: int) -> None:
    deadline = time.monotonic() + runs.HUNG_S
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in "TZ":
            return
        time.sleep(0.02)
    raise RuntimeError("the first run never came to its stage")


def remount(place: Path, option: str) -> None:
    """Remounts a disk, such as read-only."""
    from tests.torture.full_disk import _call

    _call("mount", "-o", f"remount,{option}", str(place))
