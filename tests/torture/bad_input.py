"""Sixty kinds of bad input: each ends with a message that is right byte for byte.

What is said lies in `bad_input.json`; `python -m tests.torture --messages` writes it
anew, to be read before it is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.torture import runs
from tests.torture.runs import Ended

SNAPSHOT = Path(__file__).with_name("bad_input.json")

Make = Callable[["Place"], object]


@dataclass(frozen=True)
class Place:
    """A folder for one case: `photos` is there, `result` where it was finished."""

    root: Path

    @property
    def photos(self) -> Path:
        return self.root / "photos"

    @property
    def result(self) -> Path:
        return self.root / "result"

    def write(self, name: str, content: bytes | str = b"") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def only(self, *names: str) -> None:
        """Leaves of the photographs these alone."""
        for path in self.photos.iterdir():
            if path.name not in names:
                path.unlink()


@dataclass(frozen=True)
class Case:
    """One kind of bad input."""

    name: str
    call: str  # words; `reconstruct` alone means: of photos into out
    make: Make = lambda place: None
    environment: tuple[tuple[str, str], ...] = ()
    needs_result: bool = False


def cases() -> list[Case]:
    """The catalogue."""
    return [*_photographs(), *_places(), *_recipes(), *_weights(), *_stages()]


# ---------------------------------------------------------------------- photographs
def _photographs() -> Iterator[Case]:
    run = "reconstruct photos out"

    def emptied(place: Place) -> None:
        place.only()

    yield Case("folder without images", run, emptied)
    yield Case("folder that is not there", "reconstruct nowhere out")
    yield Case("photograph in the place of a folder", "reconstruct photos/0000.jpg out")
    yield Case("one photograph", run, lambda place: place.only("0000.jpg"))

    def twins(place: Place) -> None:
        place.only("0000.jpg")
        shutil.copy(place.photos / "0000.jpg", place.photos / "again.jpg")

    yield Case("the same file twice", run, twins)

    def texts(place: Place) -> None:
        place.only()
        for name in ("a.jpg", "b.png", "c.tif"):
            place.write(f"photos/{name}", "no image")

    yield Case("texts with names of images", run, texts)

    def empty_files(place: Place) -> None:
        for path in place.photos.iterdir():
            path.write_bytes(b"")

    yield Case("files of no bytes", run, empty_files)

    def cut(place: Place) -> None:
        for path in place.photos.iterdir():
            path.write_bytes(path.read_bytes()[:200])

    yield Case("photographs that are cut", run, cut)

    def noise(place: Place) -> None:
        place.only()
        for k in range(3):
            rng = np.random.default_rng(k)
            place.write(f"photos/{k}.png", _png(rng.integers(0, 256, (240, 320, 3))))

    yield Case("photographs of nothing in common", run, noise)

    def grey(place: Place) -> None:
        place.only()
        for k in range(3):
            place.write(f"photos/{k}.png", _png(np.full((240, 320, 3), 100 + k)))

    yield Case("photographs of nothing", run, grey)

    def bomb(place: Place) -> None:
        place.only()
        for k in range(2):
            place.write(
                f"photos/{k}.png", _png(np.full((1, 1, 3), k), (65_000, 65_000))
            )

    yield Case("headers that promise 4 gigapixels", run, bomb)

    def tiny(place: Place) -> None:
        place.only()
        for k in range(3):
            rng = np.random.default_rng(k)
            place.write(f"photos/{k}.png", _png(rng.integers(0, 256, (4, 4, 3))))

    yield Case("photographs of 4 x 4 pixels", run, tiny)

    def links(place: Place) -> None:
        place.only()
        for name in ("a.jpg", "b.jpg"):
            (place.photos / name).symlink_to("/nowhere")

    yield Case("links to nothing", run, links)

    def odd_names(place: Place) -> None:
        for k, path in enumerate([*place.photos.iterdir()]):
            path.rename(path.with_name(f"a\t{k}.jpg"))

    yield Case("names with tabs", run, odd_names)

    def of_other_kind(place: Place) -> None:
        place.only()
        place.write("photos/a.gif", "GIF89a")

    yield Case("kinds that are not read", run, of_other_kind)

    def film(place: Place) -> None:
        place.write("film.mp4", "no film")

    yield Case("a film that is none", "reconstruct film.mp4 out", film)

    def heif(place: Place) -> None:
        place.only()
        for name in ("a.heic", "b.heic"):
            place.write(f"photos/{name}", b"\0\0\0\x18ftypheic" + bytes(50))

    yield Case("damaged HEIC", run, heif)
    masks = "reconstruct photos out --masks masks"
    yield Case("masks that are not there", masks)
    yield Case(
        "masks of other names",
        masks,
        lambda place: place.write("masks/x.png", _png(np.zeros((9, 9, 3)))),
    )

    def masks_of(shape: tuple[int, int, int], value: int) -> Make:
        def make(place: Place) -> None:
            for path in place.photos.iterdir():
                place.write(f"masks/{path.name}.png", _png(np.full(shape, value)))

        return make

    yield Case("masks of another size", masks, masks_of((9, 9, 3), 255))
    yield Case("masks that leave nothing", masks, masks_of((240, 320, 3), 0))

    def texts_for_masks(place: Place) -> None:
        for path in place.photos.iterdir():
            place.write(f"masks/{path.name}.png", "no image")

    yield Case("masks that are none", masks, texts_for_masks)


# -------------------------------------------------------------------------- places
def _places() -> Iterator[Case]:
    run = "reconstruct photos out"
    yield Case(
        "output that holds other files",
        run,
        lambda place: place.write("out/thesis.tex", "precious"),
    )
    yield Case(
        "output that is a file", run, lambda place: place.write("out", "precious")
    )
    yield Case(
        "output below a file",
        "reconstruct photos file/out",
        lambda place: place.write("file", "precious"),
    )
    yield Case("output inside the photographs", "reconstruct photos photos/out")
    yield Case("output that is the photographs", "reconstruct photos photos")
    yield Case(
        "photographs inside the output",
        "reconstruct out/images out",
        lambda place: place.photos.rename(_made(place.root / "out") / "images"),
    )
    yield Case("log in no folder", f"{run} --log nowhere/log.txt")


# --------------------------------------------------------------- recipes and options
def _recipes() -> Iterator[Case]:
    run = "reconstruct photos out"
    mine = f"{run} --recipe mine.yaml"

    def recipe(name: str, text: str | bytes) -> Case:
        return Case(name, mine, lambda place: place.write("mine.yaml", text))

    yield Case("recipe of no such name", f"{run} --recipe splatt")
    yield Case("recipe file that is not there", mine)
    yield recipe("recipe that is not YAML", "a: [")
    yield recipe("recipe that is a list", "- a\n- b\n")
    yield recipe("recipe of nothing", "")
    yield recipe("recipe that is no text", b"\xff\xfe\x00")
    yield recipe("recipe like itself", "like: mine.yaml\n")
    yield recipe(
        "recipe with an unknown key", "like: sift\nfeatures: {max_keypoint: 3}\n"
    )
    yield recipe("recipe with an unknown type", "like: sift\nmatcher: {type: magic}\n")
    yield Case("setting that there is not", f"{run} --set features.max_keypoint=3")
    yield Case("setting of the wrong type", f"{run} --set features.max_keypoints=many")
    yield Case("setting below its range", f"{run} --set features.max_keypoints=-1")
    yield Case("setting without a value", f"{run} --set features")
    yield Case("setting that is a section", f"{run} --set features=3")
    yield Case("threshold that there is not", f"{run} --fail-below beauty=1")
    yield Case("threshold that is no number", f"{run} --fail-below points=many")
    yield Case("pairs that there are not", f"{run} --pairs every")
    yield Case(
        "pairs of unknown names",
        f"{run} --pairs pairs.txt",
        lambda place: place.write("pairs.txt", "0000.jpg x.jpg\n"),
    )
    yield Case(
        "pair of one image",
        f"{run} --pairs pairs.txt",
        lambda place: place.write("pairs.txt", "0000.jpg\t0000.jpg\n"),
    )
    yield Case("camera of words", f"{run} --camera-params wide")
    yield Case(
        "camera with too few numbers",
        f"{run} --camera-model OPENCV --camera-params 300,160",
    )
    yield Case("rigs that are not there", f"{run} --rigs rigs.json")
    yield Case(
        "rigs that are none",
        f"{run} --rigs rigs.json",
        lambda place: place.write("rigs.json", "{}"),
    )
    yield Case("metres without GPS", f"{run} --georeference")
    yield Case("device that there is not", f"{run} --device cuda:99")
    yield Case("command that there is not", "reconstrukt photos out")
    yield Case("no core", f"{run} --num-threads 0")


# ------------------------------------------------------------------------- weights
def _weights() -> Iterator[Case]:
    fast = "reconstruct photos out --recipe fast"
    yield Case("weights that are not here", fast)
    yield Case(
        "weights in no folder",
        fast,
        lambda place: None,
        (("SFMPREP_WEIGHTS", "TMP/nowhere"),),
    )
    yield Case(
        "weights that are damaged",
        fast,
        lambda place: place.write("weights/xfeat.safetensors", "spoilt"),
        (("SFMPREP_WEIGHTS", "TMP/weights"),),
    )
    yield Case("weights that there are not", "weights fetch magic")
    yield Case("weights of no name", "weights fetch")


# -------------------------------------------------------------------------- stages
def _stages() -> Iterator[Case]:
    for command in ("pairs", "match", "database", "map", "export", "add"):
        yield Case(f"{command} before all else", f"{command} photos out")
    yield Case("place in no result", "localise out photos/0000.jpg")
    yield Case(
        "place of no photograph", "localise result nowhere.jpg", needs_result=True
    )
    yield Case("poses that are not there", "refine photos poses.csv out")
    yield Case(
        "poses that are none",
        "refine photos poses.csv out",
        lambda place: place.write("poses.csv", "hello\n"),
    )
    yield Case(
        "poses of other photographs",
        "refine photos poses.csv out",
        lambda place: place.write(
            "poses.csv", "name,x,y,z,qw,qx,qy,qz\nq.jpg,0,0,0,1,0,0,0\n"
        ),
    )
    yield Case(
        "poses that are not finite",
        "refine photos poses.csv out",
        lambda place: place.write(
            "poses.csv", "name,x,y,z,qw,qx,qy,qz\n0000.jpg,nan,0,0,1,0,0,0\n"
        ),
    )
    yield Case(
        "comparison with nothing",
        "evaluate result --reference nowhere",
        needs_result=True,
    )
    yield Case("comparison of nothing", "evaluate out --reference nowhere")
    yield Case("project that is not there", "database photos --database project.db")
    yield Case(
        "project that is none",
        "database photos --database project.db",
        lambda place: place.write("project.db", "no database"),
    )

    def other_database(place: Place) -> None:
        with closing(sqlite3.connect(place.root / "project.db")) as database:
            database.execute("CREATE TABLE recipes (name)")

    yield Case(
        "project of another program",
        "database photos --database project.db",
        other_database,
    )
    yield Case("nothing to look at", "view out")


# -------------------------------------------------------------------------- running
def run_case(case: Case, images: Path, result: Path, folder: Path) -> tuple[int, str]:
    """Exit code and message of a case, `TMP` for its folder."""
    place = Place(folder / "case")
    shutil.rmtree(place.root, ignore_errors=True)
    shutil.copytree(images, place.photos)
    if case.needs_result:
        shutil.copytree(result, place.result)
    case.make(place)

    def prepare() -> None:
        os.chdir(place.root)
        for name, value in case.environment:
            os.environ[name] = value.replace("TMP", str(place.root))

    words = [
        str(place.root / word) if _is_path(word, words_before) else word
        for words_before, word in _with_before(case.call.split())
    ]
    ended = runs.run(words, folder, prepare)
    return ended.code, said_of(ended, place.root)


def said_of(ended: Ended, root: Path) -> str:
    """The message of a run, or what is wrong with it."""
    if ended.fault:
        return f"{ended.fault}: {ended.err[-300:]}"
    return ended.message.replace(str(root), "TMP")


def _with_before(words: list[str]) -> Iterator[tuple[str, str]]:
    return zip(["", *words], words, strict=False)


def _is_path(word: str, before: str) -> bool:
    """Whether a word of a call is a path below the case's folder."""
    first = word.partition("/")[0]
    by_option = {"--masks", "--recipe", "--pairs", "--rigs", "--reference", "--log"}
    is_file = before in by_option | {"--database"} and (
        "." in word or word in ("masks", "nowhere") or "/" in word
    )
    return is_file or (
        not before.startswith("--")
        and first
        in (
            "photos",
            "out",
            "nowhere",
            "nowhere.jpg",
            "result",
            "file",
            "film.mp4",
            "poses.csv",
        )
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _png(pixels: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """A PNG; its header may promise another size."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(np.uint8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", *(size or (width, height)), 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def read_snapshot() -> dict[str, tuple[int, str]]:
    """Exit code and message of each case, by name."""
    found = json.loads(SNAPSHOT.read_text("utf-8"))
    return {name: (code, message) for name, (code, message) in found.items()}


def write_snapshot(found: dict[str, tuple[int, str]]) -> None:
    """Keeps what was said."""
    SNAPSHOT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
