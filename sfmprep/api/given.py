"""What a caller gives, as what a stage takes: a model, a store, pairs.

A stage takes a configuration, such as `AlikedConfig`, or an object that satisfies the
protocol (see `models.protocols`) and has an `identity`: a mapping that JSON can hold
and that is another one whenever its results are, such as `{"name": "mine",
"weights_sha256": "..."}`. It is recorded in the store, which is refused to others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_file import read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DenseMatcherConfig, FeaturesConfig
from sfmprep.config.base import ModelConfig
from sfmprep.errors import ConfigError, ImageError
from sfmprep.models.identity import identity
from sfmprep.models.protocols import DenseMatcher, Extractor
from sfmprep.models.shared.precision import Precision
from sfmprep.pairing.pairs import Pairs
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore
from sfmprep.types import ImageBatch, Pair

logger = logging.getLogger(__name__)

M = TypeVar("M")
S = TypeVar("S", FeatureStore, MatchStore, DenseStore)

SEVERAL_DEVICES = (
    "several devices need a configuration and the path of a store: each process builds"
    " the model itself, and all fill one file. Give both, or one device."
)
MAX_SIZE = 1600  # of an object's images, as of the networks' by default


def identity_of(
    model: object, device: str, precision: Precision, *, max_size: int | None = None
) -> dict[str, Any]:
    """What the results of a configuration, or of an object and a size, depend on.

    Raises:
        ConfigError: an object has no identity; see also `models.identity.identity`.
        WeightsError: the weights of a configuration cannot be had.
    """
    if isinstance(model, ModelConfig):
        return identity(model, device=device, precision=precision)
    found = getattr(model, "identity", None)
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{type(model).__name__} has no identity, by which a store tells what it"
            " made from what others did. Give it an attribute `identity`, such as"
            " {'name': 'mine', 'weights_sha256': None}."
        )
    return dict(found) if max_size is None else {**found, "max_size": max_size}


def size_of(
    model: FeaturesConfig | Extractor | DenseMatcherConfig | DenseMatcher,
    max_size: int | None,
) -> int:
    """The longer side that images are reduced to.

    Raises:
        ConfigError: there is one beside that of a configuration.
    """
    if not isinstance(model, ModelConfig):
        return MAX_SIZE if max_size is None else max_size
    if max_size is not None:
        raise ConfigError(
            f"max_size={max_size} beside {type(model).__name__}, which has its own. Set"
            " it there."
        )
    return model.max_size


def max_size_of(features: FeatureStore) -> int | None:
    """The longer side that images were reduced to for these features, as it is noted.

    Returns:
        None where nothing is noted: features of the files as they are.
    """
    made = features.provenance
    made = made.get("settings", made)  # as in an output folder
    if "features" in made:  # joined with semi-dense matches
        made = made["features"]
        made = made.get("settings", made)
    noted = made.get("max_size", made.get("config", {}).get("max_size"))
    return None if noted is None else int(noted)


def model_of(
    given: object, build: Callable[..., M], device: str, precision: Precision
) -> M:
    """The object, or what `build` makes of the configuration."""
    if isinstance(given, ModelConfig):
        return build(given, device=device, precision=precision)
    return cast(M, given)


@contextmanager
def opened(
    kind: type[S], store: S | str | Path | None, provenance: Mapping[str, Any]
) -> Iterator[S]:
    """A store to add to; it stays open, but one from a path not where that fails."""
    if store is not None and not isinstance(store, str | Path):
        store.expect(provenance)
        yield store
        return
    made = kind(None if store is None else in_folder(store), provenance)
    try:
        yield made
    except BaseException:
        made.close()
        raise


def in_folder(path: str | Path) -> Path:
    """The path, whose folder is made if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def warn_left_out(images: ImageSet, unreadable: Mapping[str, str]) -> None:
    """Names the images that cannot be used in the log."""
    for name, reason in unreadable.items():
        logger.warning("%s is left out: %s", images.path(name), reason)


def pairs_of(pairs: Iterable[Pair]) -> Pairs:
    """Ordered pairs, each once.

    Raises:
        ValueError: an image is paired with itself.
    """
    return pairs if isinstance(pairs, Pairs) else Pairs.of(pairs)


def decoded(path: Path, max_size: int | None) -> ImageBatch:
    """One photograph, reduced to so many pixels on its longer side, or as it is.

    Raises:
        ImageError: it is missing or cannot be decoded.
    """

    def refuse(_: str, reason: str) -> None:
        raise ImageError(f"{path}: {reason}")

    try:
        info = read_info(path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    images = ImageSet(path.parent, (path.name,), {path.name: info}, {})
    [(_, batch)] = load_batches(
        images, images.names, max_size=max_size, on_unreadable=refuse
    )
    return batch
