"""`make torture`: faults injected into real runs, counted into `examples/torture.md`.

Every kind has a share of `--minutes`, and what those before it left; then it begins
nothing more. What was not tried is not counted.
`--only` runs some kinds, whose counts take the place of earlier ones. Exit code 1:
something is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.torture import (
    bad_input,
    damage,
    folders,
    full_disk,
    kills,
    page,
    runs,
    scene,
)
from tests.torture.page import Row
from tests.torture.reference import Reference, make_reference

Kind = Callable[[Reference, Path, argparse.Namespace, runs.Until], Iterable[Row]]
_WHOLE = 0.1  # of the counts: with less, the dearer half of each kind is left out
_GOES_ON = "goes on to the same, bit for bit"
STAGES = ["extract", "match", "match beside", "database", "map", "refine", "export"]


def main() -> int:
    """Runs what is asked for and writes the page."""
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["SFMPREP_OFFLINE"] = "1"
    os.environ.pop("SFMPREP_WEIGHTS", None)
    folder = Path(
        os.environ.get("TORTURE_FOLDER") or tempfile.mkdtemp(prefix="torture-")
    )
    os.environ["TORTURE_FOLDER"] = str(folder)
    if runs.library() is None and (lacking := runs.load_library(folder)):
        print(f"without faults at single calls: {lacking}", file=sys.stderr)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        return _torture(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=[*KINDS], default=[*KINDS])
    parser.add_argument(
        "--share", type=float, default=1.0, help="of all counts, such as 0.03"
    )
    parser.add_argument("--page", type=Path, help="where the counts go")
    parser.add_argument(
        "--messages", action="store_true", help="keep what bad input is told"
    )
    return parser.parse_args()


def _torture(options: argparse.Namespace, folder: Path) -> int:
    runs.import_all()
    scene.use_flow()
    until = time.monotonic()
    reference = make_reference(folder)
    print(f"a run: {reference.seconds:.0f} s", flush=True)
    rows: list[Row] = []
    for kind in options.only:
        until += 60 * options.minutes / len(options.only)
        place = folder / kind
        place.mkdir()
        started = time.monotonic()
        for row in KINDS[kind](reference, place, options, until):
            rows.append(row)
            print(f"{row.kind}: {row.what}: {row.count}, {row.wrong} wrong", flush=True)
            for fault in row.faults:
                print(f"  {fault}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        print(f"{kind}: {time.monotonic() - started:.0f} s", flush=True)
        if options.page is not None:
            page.write(options.page, rows)
    return int(any(row.wrong for row in rows))


def _share(options: argparse.Namespace, number: int, least: int = 1) -> int:
    return max(round(number * options.share), least)


def _at_writes(
    reference: Reference, place: Path, options: argparse.Namespace, until: runs.Until
) -> Iterable[Row]:
    kind, what = "SIGKILL at a write", "at any call that writes, of every stage"
    if runs.library() is None:
        return [Row.skipped(kind, what, "needs a C compiler")]
    number = _share(options, 50, 3)
    found = kills.kill_at_writes(reference, place, number, options.seed, until)
    hit, every = len(found.stages), len(reference.writes)
    return [
        Row(
            kind=kind,
            what=f"{what} ({hit} of {every} were hit)",
            count=found.num_kills,
            expected=_GOES_ON,
            faults=found.faults,
        )
    ]


def _at_times(
    reference: Reference, place: Path, options: argparse.Namespace, until: runs.Until
) -> Iterable[Row]:
    number = _share(options, 50, 3)
    found = kills.kill_at_times(reference, place, number, options.seed, until)
    return [
        Row(
            kind="SIGKILL at any moment",
            what=f"by the clock; again and again in {found.num_folders} folders",
            count=found.num_kills,
            expected=_GOES_ON,
            faults=found.faults,
        )
    ]


def _full(
    reference: Reference, place: Path, options: argparse.Namespace, until: runs.Until
) -> Iterable[Row]:
    expected = "is told, and goes on to the same once there is space"
    found = []
    if runs.library() is not None and options.share >= _WHOLE:
        tried = full_disk.full_at_writes(
            *(reference, place, _share(options, 60, 3), options.seed),
            until=(time.monotonic() + until) / 2,
        )
        found.append(
            Row(
                kind="full disk",
                what="every call fails from one that writes on (ENOSPC, EDQUOT, EIO)",
                count=tried.num_faults,
                expected=expected,
                faults=tried.faults,
            )
        )
    what = "a disk of so much memory, growing"
    if not full_disk.can_mount(place):
        return [*found, Row.skipped("full disk", what, "needs root, to mount")]
    tried = full_disk.full_at_sizes(
        reference, place, _share(options, 36, 3), options.seed, until
    )
    return [
        *found,
        Row(
            kind="full disk",
            what=what,
            count=tried.num_faults,
            expected=expected,
            faults=tried.faults,
        ),
    ]


def _folders(
    reference: Reference, place: Path, options: argparse.Namespace, until: runs.Until
) -> Iterable[Row]:
    stages = STAGES[:: max(round(1 / options.share), 1)]
    return folders.Folders(reference, place, stages, options.seed, until).all()


def _damage(
    reference: Reference, place: Path, options: argparse.Namespace, until: runs.Until
) -> Iterable[Row]:
    return damage.all_kinds(reference, place, options.share, options.seed, until)


def _messages(
    reference: Reference, place: Path, options: argparse.Namespace, until: runs.Until
) -> Iterable[Row]:
    cases = bad_input.cases()
    if options.share < 1:
        cases = cases[:: max(round(1 / options.share) // 2, 1)]
    found = {}
    for case in cases:
        if found and runs.is_over(until) and not options.messages:
            break
        found[case.name] = bad_input.run_case(
            *(case, reference.images, reference.out, place)
        )
    if options.messages:
        bad_input.write_snapshot(found)
    expected = bad_input.read_snapshot()
    return [
        Row(
            kind="bad input",
            what="wrong photographs, folders, recipes, weights, poses, calls",
            count=len(found),
            expected="exit code 1 or 2, and a message that is right byte for byte",
            faults=[
                f"{name}: it says {said}, expected {expected.get(name)}"
                for name, said in found.items()
                if said != expected.get(name)
            ],
        )
    ]


KINDS: dict[str, Kind] = {
    "messages": _messages,
    "full": _full,
    "folders": _folders,
    "damage": _damage,
    "kills": _at_writes,
    "moments": _at_times,
}

if __name__ == "__main__":
    sys.exit(main())
