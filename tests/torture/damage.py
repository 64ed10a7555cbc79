"""Files that are cut or have other bits: in whole runs, and reader by reader.

A damaged file is told by its name, or made again; it is never a stack trace, a crash, a
hang, or another result without a word.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sfmprep.errors import ImageError, SfmprepError
from tests.torture import runs, scene
from tests.torture.content import _STORES, _of_arrays, content, differences
from tests.torture.page import Row
from tests.torture.reference import Reference

Parser = Callable[[Path], object]
_RUNS = 60
_HEADERS = 5_000
_EXAMPLES = 150  # of each reader
# of a whole run, in the order of writing: what is read by what comes later
_IN_ORDER = (
    *("features.h5", "pairs.txt", "matches.h5", "verified.db", "pairs_beside.txt"),
    *("features_beside.h5", "matches_beside.h5", "keypoints_beside.h5"),
    *("verified_beside.db", "weak_pairs.txt", "stronger_matches.h5"),
    *("verified_again.db", "pairs_left.txt", "dense.h5", "joined_features.h5"),
    *("joined_matches.h5", "database.db", "mapped.zip", "second_pairs.txt"),
    *("second.db", "mapped_on.zip", "refined.zip", "models/0/points3D.bin"),
)
_BESIDE = (
    *("images.json", "stages.json", "mapped_on_consistency.json"),
    *("poses.json", "lost_pairs.txt", "models/0/images.bin", "models/0/cameras.bin"),
    *("../recipe.yaml", "../report.json", "../dataset.json", "../world_from_sfm.json"),
)


def all_kinds(
    reference: Reference, folder: Path, share: float, seed_: int, until: runs.Until
) -> list[Row]:
    """Every reader, headers, then whole runs."""
    until_readers = (time.monotonic() + until) / 2
    rows = [*_of_readers(reference, folder, share, seed_, until_readers)]
    rows.append(_headers(folder, max(round(_HEADERS * share), 200), seed_))
    number = max(round(_RUNS * share), 3)
    tried, faults = in_runs(reference, folder, number, seed_, until)
    return [
        *rows,
        Row(
            kind="damaged files",
            what="a file of a finished run is cut or has other bits; it goes on",
            count=tried,
            expected="is told by its name, or made again; the same result",
            faults=faults,
        ),
    ]


def _of_readers(
    reference: Reference, folder: Path, share: float, seed_: int, until: runs.Until
) -> Iterator[Row]:
    number = max(round(_EXAMPLES * share), 5)
    tried, faults = 0, []
    readers = readers_of(reference, folder)
    num_read = 0
    for reader in readers:
        if num_read and runs.is_over(until):
            break
        num_read += 1
        some, wrong = fuzz(reader, folder, number, seed_)
        tried += some
        faults += wrong
    yield Row(
        kind="damaged files",
        what=f"{num_read} of {len(readers)} readers of stores, databases, archives,"
        " models, weights, photographs, tables and texts, fuzzed",
        count=tried,
        expected="what was written, or an error that names the file",
        faults=faults,
    )


def _headers(folder: Path, number: int, seed_: int) -> Row:
    """See `headers.py`."""
    kind, what = "damaged files", "headers of six kinds of photographs, by atheris"
    if importlib.util.find_spec("atheris") is None:
        return Row.skipped(kind, what, "needs atheris")
    corpus = folder / "corpus"
    corpus.mkdir()
    for path in (folder / "samples").glob("photograph.*"):
        shutil.copy(path, corpus)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.torture.headers"),
            *(str(corpus), str(number), str(seed_)),
        ],
        env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return Row(
        kind=kind,
        what=what,
        count=number,
        expected="is read or refused",
        faults=[ended.stderr[-2000:]] if ended.returncode else [],
    )


# ------------------------------------------------------------------------ whole runs
def in_runs(
    reference: Reference, folder: Path, number: int, seed_: int, until: runs.Until
) -> tuple[int, list[str]]:
    """Damages one file of a finished result and goes on; tries, and what is wrong."""
    rng = random.Random(seed_)
    names = [*_IN_ORDER, *_BESIDE]
    rng.shuffle(names)
    faults, num_tried = [], 0
    for k in range(number):
        if num_tried and runs.is_over(until):
            break
        name = names[k % len(names)]
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(reference.out, out)
        path = (out / "work" / name).resolve()
        before = path.read_bytes()
        if not before:
            continue
        path.write_bytes(damaged := _damaged(before, rng))
        num_tried += damaged != before
        again = rng.random() < 0.6
        if again:  # so that it is read
            _forget_what_follows(out / "work", name)
        ended = runs.run(scene.command(reference.images, out), folder)
        where = f"{name}, {_in_words(before, damaged)}, {'read' if again else 'there'}"
        if ended.fault:
            faults.append(f"{where}: {ended.fault}: {ended.err[-700:]}")
        elif ended.code not in (0, 3):
            told = str(path.parent) if name.startswith("models/") else path.name
            if path.name not in ended.message and told not in ended.message:
                faults.append(f"{where}: it says: {ended.message}")
        elif path.name != "recipe.yaml":
            # also what is told is made again
            expected = _without(name, reference.content)
            if other := differences(expected, _without(name, content(out))):
                told = "told" if path.name in ended.err else "not told"
                faults.append(f"{where}: other, {told}: {', '.join(other)}")
    return num_tried, faults


def _damaged(before: bytes, rng: random.Random) -> bytes:
    kind = rng.choice(["cut", "bits", "bits", "zeros", "empty"])
    if kind == "cut":
        return before[: rng.randrange(len(before))]
    if kind == "empty":
        return b""
    after = bytearray(before)
    if kind == "zeros":
        start = rng.randrange(len(after))
        after[start : start + 512] = bytes(len(after[start : start + 512]))
    else:
        for _ in range(rng.choice([1, 1, 3])):
            after[rng.randrange(len(after))] ^= 1 << rng.randrange(8)
    return bytes(after)


def _in_words(before: bytes, after: bytes) -> str:
    if len(after) < len(before):
        return f"cut from {len(before)} to {len(after)} bytes"
    changed = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return f"{len(changed)} other bytes from {changed[0] if changed else 0} on"


def _forget_what_follows(work: Path, name: str) -> None:
    """Deletes what is made of a file, so that a run makes it of what is there."""
    if name not in _IN_ORDER:
        return
    for later in _IN_ORDER[_IN_ORDER.index(name) + 1 :]:
        path = work / later
        if later.startswith("models/"):
            if not name.startswith("models/"):
                shutil.rmtree(work / "models", ignore_errors=True)
        elif path.exists():
            path.unlink()


def _without(name: str, found: dict[str, str]) -> dict[str, str]:
    """Content without that of a file that nothing may have read."""
    own = name.rpartition("/")[2]
    names = {key: key.partition(":")[0].rpartition("/")[2] for key in found}
    return {key: value for key, value in found.items() if names[key] != own}


# --------------------------------------------------------------------------- readers
@dataclass(frozen=True, kw_only=True)
class Reader:
    """What reads a kind of file; `same` where it must never give something else."""

    name: str
    file: Path  # a whole one
    read: Parser
    same: bool = False
    beside: bool = False  # whether it needs the other files of its folder


def readers_of(reference: Reference, folder: Path) -> list[Reader]:
    """All of them."""
    from safetensors.numpy import save_file

    work = reference.out / "work"
    found = [
        Reader(name=name, file=work / name, read=_read_store, same=True)
        for name in ("features.h5", "matches.h5", "dense.h5")
    ]
    found += [
        Reader(name="database.db", file=work / "database.db", read=_read_database),
        Reader(name="mapped.zip", file=work / "mapped.zip", read=_read_packed),
        *(
            Reader(
                name=f"models/0/{file}",
                file=work / "models" / "0" / file,
                read=_read_model,
                beside=True,
            )
            for file in (
                *("cameras.bin", "images.bin", "points3D.bin"),
                *("frames.bin", "rigs.bin"),
            )
        ),
        Reader(name="stages.json", file=work / "stages.json", read=_read_stages),
        Reader(name="images.json", file=work / "images.json", read=_read_manifest),
        Reader(name="poses.json", file=work / "poses.json", read=_read_poses),
        Reader(name="consistency.json", file=work / "mapped_on_consistency.json",
               read=_read_trust),
        Reader(name="recipe.yaml", file=reference.out / "recipe.yaml",
               read=_read_recipe),
        Reader(name="pairs.txt", file=work / "pairs.txt", read=_read_pairs),
        Reader(name="transforms.json", file=reference.out / "transforms.json",
               read=_read_known_poses),
    ]  # fmt: skip
    samples = folder / "samples"
    samples.mkdir()
    import numpy as np

    weights = samples / "some.safetensors"
    save_file({"a": np.arange(12.0), "b": np.ones((3, 4), np.float16)}, weights)
    found.append(Reader(name="safetensors", file=weights, read=_read_weights))
    table = samples / "poses.csv"
    table.write_text("name,x,y,z,qw,qx,qy,qz\n0000.jpg,1,2,3,1,0,0,0\n")
    found.append(Reader(name="poses.csv", file=table, read=_read_known_poses))
    for path in _photographs(reference, samples):
        found.append(Reader(name=path.name, file=path, read=_read_photograph))
    return found


def _photographs(reference: Reference, samples: Path) -> list[Path]:
    from PIL import Image

    with Image.open(reference.images / "0000.jpg") as opened:
        small = opened.resize((64, 48))
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model", 6
    found = []
    for kind in ("jpg", "png", "tif", "webp", "bmp", "avif"):
        path = samples / f"photograph.{kind}"
        small.save(path, exif=exif)
        found.append(path)
    return found


def fuzz(
    reader: Reader, folder: Path, number: int, seed_: int
) -> tuple[int, list[str]]:
    """Damages the file again and again, in another process; as `in_runs`."""
    place = folder / "fuzzed"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if reader.beside:
        for other in reader.file.parent.iterdir():
            shutil.copy(other, place)
    noted = folder / "noted.txt"
    noted.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            noise = os.open(folder / "noise.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(noise, 2)  # OpenCV and Pillow have much to say
            with noted.open("w") as file:
                _fuzz_here(reader, place / reader.file.name, number, seed_, file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = _wait(pid)
    lines = noted.read_text().split("\0") if noted.exists() else []
    tried = sum(line == "tried" for line in lines)
    faults = sorted({line for line in lines if line not in ("tried", "")})
    if status:
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        how = "no end" if status == -signal.SIGXCPU else how
        faults.append(f"the reader ended by {how} after {tried} tries")
    return tried, [f"{reader.name}: {fault}" for fault in faults]


def _wait(pid: int) -> int:
    deadline = time.monotonic() + 2 * runs.HUNG_S
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGXCPU)
        time.sleep(0.05)


def _fuzz_here(reader: Reader, path: Path, number: int, seed_: int, file: Any) -> None:
    whole = reader.file.read_bytes()
    path.write_bytes(whole)
    expected = reader.read(path)

    def note(text: str) -> None:
        file.write(f"{text}\0")
        file.flush()

    changes = st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
        min_size=0,
        max_size=3,
    )

    @seed(seed_)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(changes=changes, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
    def damage(changes: list[tuple[float, int]], kept: float) -> None:
        content = bytearray(whole[: round(kept * len(whole))])
        for place, bits in changes:
            if content:
                content[int(place * len(content))] ^= bits
        path.write_bytes(content)
        note("tried")
        try:
            found = reader.read(path)
        except SfmprepError as error:
            if path.name not in str(error) and path.parent.name not in str(error):
                note(f"it says: {error}")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            note(f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}")
        else:
            if reader.same and found != expected:
                note("something else was read, and nothing said")

    damage()


def _read_store(path: Path) -> object:
    with _STORES[path.name](path) as store:
        return {key: _of_arrays(vars(item)) for key, item in store.items()}


def _read_database(path: Path) -> object:
    from sfmprep.mapping.database import open_database
    from sfmprep.mapping.verify import count_inliers, read_verified
    from sfmprep.mapping.view_graph import read_pair_table

    read_verified(path)
    names = tuple(sorted({name for pair in count_inliers(path) for name in pair}))
    read_pair_table(path, names)
    with open_database(path) as database:
        for image in database.read_all_images():
            database.read_keypoints(image.image_id)
    return None


def _read_packed(path: Path) -> object:
    from sfmprep.mapping.models import read_packed

    read_packed(path)
    return None


def _read_model(path: Path) -> object:
    from sfmprep.mapping.models import read_model

    read_model(path.parent)
    return None


def _read_stages(path: Path) -> object:
    from sfmprep.pipelines.ledger import Ledger
    from sfmprep.pipelines.run import read_resolved
    from sfmprep.pipelines.stage_table import STAGES

    out = path.parent / "of_stages"
    (out / "work").mkdir(parents=True, exist_ok=True)
    shutil.copy(path, out / "work" / path.name)
    recipe = out / "recipe.yaml"
    if not recipe.exists():
        reference = Path(os.environ["TORTURE_FOLDER"]) / "reference"
        shutil.copy(reference / "recipe.yaml", recipe)
    ledger = Ledger(out, read_resolved(recipe), {"a": "b"})
    for stage in (name for name in STAGES if ledger.keys.applies(name)):
        ledger.is_done(stage)
        ledger.can_grow(stage)
        ledger.why(stage)
    ledger.earlier_seconds(STAGES)
    return None


def _read_manifest(path: Path) -> object:
    from sfmprep.pipelines.run import read_contents

    nothing: Any = SimpleNamespace(
        names=(), mask_root=None, path=lambda name: path.with_name(name)
    )
    return read_contents(SimpleNamespace(manifest=path), nothing).gone  # type: ignore[arg-type]


def _read_poses(path: Path) -> object:
    from sfmprep.pipelines.artefacts import read_poses

    place = SimpleNamespace(poses=path, models=path.with_name("models"))
    return read_poses(SimpleNamespace(workspace=place))  # type: ignore[arg-type]


def _read_trust(path: Path) -> object:
    from sfmprep.mapping.trust import Trust

    return Trust.read(path)


def _read_recipe(path: Path) -> object:
    from sfmprep.config.load import load_recipe, read_resolved

    return load_recipe(path), read_resolved(path)


def _read_pairs(path: Path) -> object:
    from sfmprep.pairing.pairs import pairs_from_file

    return pairs_from_file(path, [f"{k:04}.jpg" for k in range(scene.NUM_IMAGES)])


def _read_known_poses(path: Path) -> object:
    from sfmprep.known_poses.read import read_poses

    read_poses(path)
    return None


def _read_weights(path: Path) -> object:
    from sfmprep.weights.cache import ResolvedWeights
    from sfmprep.weights.load import load_tensors

    load_tensors(ResolvedWeights(name="compact", path=path, sha256=""))
    return None


def _read_photograph(path: Path) -> object:
    from sfmprep.capture.image_file import read_info, read_pixels

    try:  # whoever calls adds the name
        read_info(path)
        read_pixels(path)
    except ImageError:
        return None
    return None
