"""The output folder: what lies where, and whether a run may begin or go on in it.

out/
    recipe.yaml                the recipe; from the first feature on one choice is made
    report.html report.json    what was found (see `report`)
    images/ sparse/0/ ...      the dataset (see `export.dataset`)
    database.db                only with `mapping.type: none`
    work/                      what is needed to go on; may be deleted afterwards
        images.json    size, time and checksum of the photographs and masks
        features.h5 pairs.txt matches.h5 database.db
        verified.db weak_pairs.txt stronger_matches.h5      the second rung (`ladder`)
        verified_again.db pairs_left.txt dense.h5           the third, semi-dense
        joined_features.h5 joined_matches.h5      features and semi-dense matches
        mapped.zip     the mapper's models
        second_pairs.txt lost_pairs.txt second.db mapped_on.zip      the second round
        refined.zip    models with refined keypoints
        rigs.json held.zip     rigs, if there are any, and models that keep to them
        models/0 ...   those without what is not supported
        poses.json     uncertainties of the poses, and images set aside
        stages.json    which stages are done, with their keys (see `stage_table`)
        earlier/       what was made with other settings, until they come back
        developed/     photographs that films, RAW files, panoramas became; developed.json
        lock           held by the run that is going on
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sfmprep.errors import ConfigError, StoreError
from sfmprep.files import not_written

logger = logging.getLogger(__name__)

_EARLY = {"lock", "developed", "developed.json", "stages.json"}


@dataclass(frozen=True)
class Workspace:
    """The paths of one output folder."""

    out: Path

    @property
    def work(self) -> Path:
        """The folder of everything that is not the dataset."""
        return self.out / "work"

    @property
    def recipe(self) -> Path:
        """The recipe of the last run."""
        return self.out / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """Sizes, times and checksums of the photographs."""
        return self.work / "images.json"

    @property
    def earlier(self) -> Path:
        """What was made with other settings."""
        return self.work / "earlier"

    @property
    def earlier_dataset(self) -> Path:
        """The dataset of an earlier run, until there is one of this run."""
        return self.earlier / "dataset"

    @property
    def developed(self) -> Path:
        """Photographs that films, RAW files and panoramas became."""
        return self.work / "developed"

    @property
    def developed_table(self) -> Path:
        """Which file became which of them."""
        return self.work / "developed.json"

    @property
    def features(self) -> Path:
        """The feature store."""
        return self.work / "features.h5"

    @property
    def pairs(self) -> Path:
        """The pairs, one a line."""
        return self.work / "pairs.txt"

    @property
    def matches(self) -> Path:
        """The match store."""
        return self.work / "matches.h5"

    @property
    def dense(self) -> Path:
        """The store of semi-dense matches."""
        return self.work / "dense.h5"

    @property
    def stronger_matches(self) -> Path:
        """Matches of the pairs that were weak, by the stronger matcher."""
        return self.work / "stronger_matches.h5"

    @property
    def pairs_left(self) -> Path:
        """The pairs that were matched semi-densely."""
        return self.work / "pairs_left.txt"

    @property
    def joined_features(self) -> Path:
        """Keypoints of features and semi-dense matches."""
        return self.work / "joined_features.h5"

    @property
    def joined_matches(self) -> Path:
        """Matches of `joined_features`."""
        return self.work / "joined_matches.h5"

    @property
    def rigs(self) -> Path:
        """The rigs of the capture, as COLMAP reads them."""
        return self.work / "rigs.json"

    @property
    def held(self) -> Path:
        """Models that keep to the rigs, packed."""
        return self.work / "held.zip"

    @property
    def mapped(self) -> Path:
        """The mapper's models, packed: tools that scan a folder must not find them."""
        return self.work / "mapped.zip"

    @property
    def second_pairs(self) -> Path:
        """The pairs of the second round."""
        return self.work / "second_pairs.txt"

    @property
    def lost_pairs(self) -> Path:
        """Of these, the ones of images without a pose."""
        return self.work / "lost_pairs.txt"

    @property
    def second_database(self) -> Path:
        """The database with the pairs of the second round; none if there are none."""
        return self.work / "second.db"

    @property
    def mapped_on(self) -> Path:
        """The models after the second round, packed."""
        return self.work / "mapped_on.zip"

    @property
    def consistency(self) -> Path:
        """How far verified pairs and the largest model agree, and pairs left out."""
        return self.work / "consistency.json"

    @property
    def refined(self) -> Path:
        """The mapper's models after their keypoints were refined, packed."""
        return self.work / "refined.zip"

    @property
    def models(self) -> Path:
        """COLMAP models, the largest is called 0."""
        return self.work / "models"

    @property
    def poses(self) -> Path:
        """Uncertainties of the poses, and images that were set aside."""
        return self.work / "poses.json"

    @property
    def report(self) -> Path:
        """What a run found, for programs."""
        return self.out / "report.json"

    @property
    def report_page(self) -> Path:
        """What a run found, for people."""
        return self.out / "report.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds its lock.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """
        lock = FileLock(self.work / "lock")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"{self.out} is in use by another sfmprep. Wait for it, or stop it."
            ) from None
        except OSError as error:
            raise not_written(self.out, error) from error
        try:
            yield
        finally:
            lock.release()

    def put_aside(self, path: Path, key: str, wanted: str) -> None:
        """Makes room for a file with another key, and takes that back if it is there.

        Args:
            path: A file in `work`; nothing is moved where it is missing.
            key: The key that it was made with.
            wanted: The key that a file is wanted of.
        """
        if path.exists():
            self.earlier.mkdir(exist_ok=True)
            path.replace(self._earlier(path, key))
        with contextlib.suppress(FileNotFoundError):
            self._earlier(path, wanted).replace(path)

    def _earlier(self, path: Path, key: str) -> Path:
        return self.earlier / f"{path.stem}-{key[:16]}{path.suffix}"

    def check_place(self, images: Path) -> None:
        """Makes sure that results may go here; changes nothing.

        Raises:
            ConfigError: `out` is a file, lies in or around the folder of images, or
                holds something else.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out} is a file. Give a folder for the output.")
        if _is_inside(self.out, images):
            raise ConfigError(
                f"{self.out} lies inside the folder of images {images}: the results"
                " would be taken for photographs. Give a folder beside it."
            )
        for folder in (self.out / "images", self.work):
            if _is_inside(images, folder):
                raise ConfigError(
                    f"the folder of images {images} lies inside the results in"
                    f" {self.out}, which are written anew. Give another output folder."
                )
        if self.recipe.is_file() or not self.out.is_dir():
            return
        found = sorted(entry.name for entry in self.out.iterdir())
        if found == ["work"] and {e.name for e in self.work.iterdir()} <= _EARLY:
            return  # a run that was stopped before there was a recipe
        if found:
            raise ConfigError(
                f"{self.out} is not empty and not an output of sfmprep (it holds"
                f" {', '.join(found[:3])}). Give a new or empty folder."
            )


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
