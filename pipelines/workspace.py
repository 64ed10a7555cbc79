"""The output folder: what lies where, what is done, and whether a run may go on in it.

out/
    recipe.yaml                the resolved recipe: one choice of features and matcher
    report.html report.json    what was found (see `report`)
    images/ sparse/0/ ...      the dataset (see `export.dataset`)
    database.db                only with `mapping.type: none`
    work/                      what is needed to go on; may be deleted afterwards
        images.json    names and sizes in bytes of the images
        features.h5 pairs.txt matches.h5 database.db
        dense.h5 weak_pairs.txt      semi-dense matches, and for which pairs
        joined_features.h5 joined_matches.h5      features and semi-dense matches
        models/0 ...   COLMAP models of the photographs as they are
        poses.json     uncertainties of the poses, and images set aside
        stages.json    which stages are done, with the checksum of their inputs
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Frontend, Recipe
from sfmprep.config.load import read_resolved
from sfmprep.errors import ConfigError, ImageError
from sfmprep.files import not_written, read_table, write_text

logger = logging.getLogger(__name__)

# stages that are noted
_ORDER = ("retrieve", "weak", "join", "import", "database", "map", "export")


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
        """The resolved recipe."""
        return self.out / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """Names and sizes of the images."""
        return self.work / "images.json"

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
    def weak_pairs(self) -> Path:
        """The pairs that the features left weak, and so were matched semi-densely."""
        return self.work / "weak_pairs.txt"

    @property
    def scratch_database(self) -> Path:
        """The database that tells which pairs are weak; it is removed then."""
        return self.work / "weak.db"

    @property
    def joined_features(self) -> Path:
        """Keypoints of features and semi-dense matches."""
        return self.work / "joined_features.h5"

    @property
    def joined_matches(self) -> Path:
        """Matches of `joined_features`."""
        return self.work / "joined_matches.h5"

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

    def database(self, recipe: Recipe) -> Path:
        """The COLMAP database; in plain sight where it is the result."""
        folder = self.out if recipe.mapping.type == "none" else self.work
        return folder / "database.db"

    # ------------------------------------------------------------------- going on
    def chosen_frontend(self, recipe: Recipe) -> Frontend | None:
        """The choice of features and matcher that an earlier run here made.

        None where there was no earlier run, or its choice is none of the recipe's.
        """
        if not self.recipe.is_file():
            return None
        earlier = read_resolved(self.recipe).frontends[0]
        return earlier if earlier in recipe.frontends else None

    def open(self, recipe: Recipe, images: ImageSet) -> None:
        """Makes the folder, or checks that a run with these inputs may go on in it.

        Args:
            recipe: A resolved recipe.
            images: The capture.

        Raises:
            ConfigError: the folder holds something else, or the result of another
                recipe.
            ImageError: an image changed since its features were extracted.
            StoreError: the folder cannot be made or written.
        """
        self.check_place(images.root)
        if self.recipe.is_file():
            self._check_recipe(recipe)
        manifest = self._continued_manifest(images)
        try:
            # first, so that a run stopped here can go on
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.recipe, recipe.to_yaml())
            self.work.mkdir(exist_ok=True)
        except OSError as error:
            raise not_written(self.out, error) from error
        write_text(self.manifest, json.dumps(manifest, ensure_ascii=False))

    def is_done(self, stage: str, inputs: object) -> bool:
        """Whether a stage was completed with these inputs."""
        return self.done(stage) == _checksum(inputs)

    def done(self, stage: str) -> str | None:
        """The checksum of the inputs that a stage was completed with, or None."""
        return self._stages().get(stage)

    def start(self, stage: str) -> None:
        """Notes that the result of a stage, and so of those after it, is replaced."""
        later = _ORDER[_ORDER.index(stage) :]
        stages = self._stages()
        left = {k: v for k, v in stages.items() if k not in later}
        if left != stages:
            write_text(self.work / "stages.json", json.dumps(left, indent=1))

    def finish(self, stage: str, inputs: object) -> None:
        """Notes that a stage is complete."""
        stages = {**self._stages(), stage: _checksum(inputs)}
        write_text(self.work / "stages.json", json.dumps(stages, indent=1))

    # ------------------------------------------------------------------- internals
    def _stages(self) -> dict[str, str]:
        return read_table(self.work / "stages.json")

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
        if not self.recipe.is_file() and self.out.is_dir() and any(self.out.iterdir()):
            found = sorted(entry.name for entry in self.out.iterdir())[:3]
            raise ConfigError(
                f"{self.out} is not empty and not an output of sfmprep (it holds"
                f" {', '.join(found)}). Give a new or empty folder."
            )

    def _check_recipe(self, recipe: Recipe) -> None:
        """Refuses what the stores cannot go on with; other stages are done anew."""
        earlier = read_resolved(self.recipe)
        ignored = {"name", "description"}
        was = _flat(earlier.model_dump(mode="json", exclude=ignored))
        now = _flat(recipe.model_dump(mode="json", exclude=ignored))
        changed = [k for k in sorted({*was, *now}) if was.get(k) != now.get(k)]
        differing = [f"{k}: {was.get(k)!r} there, {now.get(k)!r} now" for k in changed]
        of_stores = {"features", "matcher", "masks", "otherwise", "seed"}
        same_stores = not any(
            key.partition(".")[0] in of_stores
            # semi-dense matching may begin or end, but not change
            or (key.startswith("dense.matcher.") and {key} <= was.keys() & now.keys())
            for key in changed
        )
        if differing and same_stores:
            logger.info(
                "settings that changed since the earlier run: %s; what depends on them"
                " is done anew",
                "; ".join(differing),
            )
        elif differing:
            raise ConfigError(
                f"{self.out} holds the result of recipe {earlier.name!r} with other"
                f" settings:\n  " + "\n  ".join(differing) + "\nGive another output"
                f" folder, or go on with the old settings: --recipe {self.recipe}"
            )

    def _continued_manifest(self, images: ImageSet) -> dict[str, int]:
        """Name and size in bytes of every image of this run and of earlier ones."""
        now = {name: info.num_bytes for name, info in images.infos.items()}
        was: dict[str, int] = read_table(self.manifest)
        if gone := sorted(was.keys() - now.keys()):
            logger.warning(
                "%d images of the earlier run, such as %s, are not in %s now, so the"
                " result will be without them",
                len(gone),
                gone[0],
                images.root,
            )
        changed = [name for name in now if name in was and was[name] != now[name]]
        if changed:
            raise ImageError(
                f"{images.path(changed[0])} changed since {self.out} was begun"
                f" ({len(changed)} such images). Give another output folder."
            )
        return {**was, **now}


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _checksum(inputs: object) -> str:
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
