"""Shares of a stage, each done by one task of an array job, such as of SLURM.

    task 1 of 9 ──► features.h5.parts/share-0001-of-0009.h5 ┐  the same command without
    ...                                                     ├► --shard joins them, and
    task 9 of 9 ──► features.h5.parts/share-0009-of-0009.h5 ┘  does what is missing

Tasks know nothing of each other. They take no lock and write nothing but their share
and a note of what it is of, so they may start at once, in a new folder too. One that
was stopped and starts again goes on in its share; where one never ends, the joining
command does its work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sfmprep.capture.elsewhere import only
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.errors import ConfigError, StoreError
from sfmprep.files import read_table, write_text
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.in_shards import changed_since, contents_of, parts_of
from sfmprep.frontend.match import match_features, missing_pairs, pairs_per_batch
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.pairing.pairs import pairs_from_file
from sfmprep.pipelines.ledger import Ledger
from sfmprep.pipelines.run import choose, read_contents
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.stores.ragged import DamagedError
from sfmprep.stores.tables import FeatureStore, MatchStore

logger = logging.getLogger(__name__)

_IMAGES_A_BLOCK = 34  # pairs are ordered so that a share needs few images
T = TypeVar("T")
_S = TypeVar("_S", FeatureStore, MatchStore)


@dataclass(frozen=True)
class Share:
    """One of so many parts of the work that are about equal."""

    number: int  # from 1
    count: int

    @staticmethod
    def parse(text: str) -> Share:
        """Reads `3/100`.

        Raises:
            ConfigError: it is no such thing.
        """
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return Share(int(number), int(count))
        raise ConfigError(
            f"--shard {text}: expected I/N with I from 1 to N, such as 3/100 for the"
            " third of a hundred."
        )

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Its part of a list: neighbours."""
        first, last = (
            len(items) * k // self.count for k in (self.number - 1, self.number)
        )
        return items[first:last]

    @property
    def file(self) -> str:
        """The name of its store."""
        return f"share-{self.number:04d}-of-{self.count:04d}.h5"


def extract_share(
    images: ImageSet,
    out: Path,
    recipe: Recipe,
    share: Share,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Path, int]:
    """Extracts a share of the features that are not there yet.

    Returns:
        The store of the share, and how many images it holds.

    Raises:
        SfmprepError: see `extract_features`.
        StoreError: features are there that were made with other settings.
    """
    recipe, made = _made(images, out, recipe, "extract")
    path = Workspace(out).features
    mine = only(images, share.of(images.names))
    with _there(FeatureStore, path, made) as there:
        missing = [name for name in mine.names if name not in there]
    _note_contents(path, share, read_contents(Workspace(out), mine).now)
    extractor = build_extractor(
        recipe.features, device=device, precision=recipe.engine.precision
    )
    with _open(FeatureStore, path, share, made) as store:
        unreadable = extract_features(
            *(only(mine, missing), extractor, store),
            max_size=recipe.features.max_size,
            num_workers=recipe.engine.num_workers,
            progress=progress,
        )
        for name, reason in unreadable.items():
            logger.warning("%s is left out: %s", images.path(name), reason)
        return parts_of(path) / share.file, len(store)


def match_share(
    images: ImageSet,
    out: Path,
    recipe: Recipe,
    share: Share,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Path, int]:
    """Matches a share of the pairs of the first rung that are not matched yet.

    Returns:
        The store of the share, and how many pairs it holds.

    Raises:
        SfmprepError: see `match_features`.
        StoreError: there are no features or pairs, or matches are there that were made
            with other settings.
    """
    recipe, made = _made(images, out, recipe, "match")
    _, features_made = _made(images, out, recipe, "extract")
    workspace = Workspace(out)
    for file, command in (
        (workspace.features, "extract"),
        (workspace.pairs, "pairs"),
    ):
        if not file.is_file():
            raise StoreError(f"{file} is missing. Run `sfmprep {command}` first.")
    pairs = order_for_cache(
        pairs_from_file(workspace.pairs, images.names).items, _IMAGES_A_BLOCK
    )
    with (
        _there(FeatureStore, workspace.features, features_made) as features,
        _there(MatchStore, workspace.matches, made) as there,
    ):
        missing = missing_pairs(share.of(pairs), features, there)
        matcher = build_matcher(
            recipe.matcher, device=device, precision=recipe.engine.precision
        )
        with _open(MatchStore, workspace.matches, share, made) as store:
            match_features(
                *(missing, features, matcher, store),
                batch_size=pairs_per_batch(device),
                cache_bytes=int(recipe.engine.cache_gb * 1e9),
                progress=progress,
            )
            return parts_of(workspace.matches) / share.file, len(store)


def _made(
    images: ImageSet, out: Path, recipe: Recipe, stage: str
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with one choice made, and what a store of a stage is made of."""
    workspace = Workspace(out)
    workspace.check_place(images.source)
    chosen = choose(workspace, recipe, len(images))
    keys = Ledger(out, chosen, {}, images.developed_sha256).keys
    return chosen, {"key": keys.key(stage), "settings": keys.settings(stage)}


def _note_contents(path: Path, share: Share, contents: Mapping[str, str]) -> None:
    """Notes what photographs and masks a share is of; forgets those that changed."""
    part = parts_of(path) / share.file
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file() and (others := changed_since(part, contents)):
        try:
            FeatureStore.forget(part, others)
        except DamagedError as error:
            logger.warning("it is made again: %s", error)
            part.unlink()
    noted = {**read_table(contents_of(part)), **contents}  # others it still holds
    write_text(contents_of(part), json.dumps(noted, ensure_ascii=False))


def _there(kind: type[_S], path: Path, made: dict[str, Any]) -> _S:
    """What the joined store holds, for reading; an empty one where there is none."""
    if not path.is_file():
        return kind()
    store = kind(path)
    if store.provenance["key"] != made["key"]:
        store.close()
        raise StoreError(
            f"{path} was made with other settings. Run the command once without"
            " --shard, or choose another output folder."
        )
    return store


def _open(kind: type[_S], path: Path, share: Share, made: dict[str, Any]) -> _S:
    """The store of a share, to go on in it."""
    file = parts_of(path) / share.file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return kind(file, made)
    except DamagedError as error:
        logger.warning("it is made again: %s", error)
        file.unlink()
        return kind(file, made)
