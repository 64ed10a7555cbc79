"""What a model is worth by the verified pairs, those left out and those that remain."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import csr_matrix

from sfmprep.errors import StoreError
from sfmprep.files import write_text
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.contradictions import Contradiction
from sfmprep.mapping.database import copy_database
from sfmprep.mapping.wrong_pairs import Asked, WrongPair, judge_pairs
from sfmprep.types import Mask, Pair

_CONSISTENCY = "_consistency.json"  # after the name of an archive of models
_CONTRADICTED = 0.3  # fewer of its matches fit the poses
_MIN_INLIERS = 30


def consistency_of(archive: Path) -> Path:
    """The file beside an archive of models that says what its largest is worth."""
    return archive.with_name(f"{archive.stem}{_CONSISTENCY}")


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far the verified pairs and the largest model agree."""

    num_asked: int  # verified pairs between its images, without those left out
    num_contradicted: int  # of these, pairs that the poses contradict
    left_out: tuple[WrongPair, ...]  # pairs that were not mapped with
    overlaid: tuple[WrongPair, ...]  # wrong pairs that the model agrees with
    broken: tuple[Contradiction, ...] = ()  # neighbours in time that it contradicts
    cleared: tuple[Pair, ...] = ()  # looked wrong, but models made without them agree

    @property
    def consistency(self) -> float:
        """Share, 0..1, of the pairs that agree and are not overlaid; 1 for no pairs."""
        if not self.num_asked:
            return 1.0
        bad = self.num_contradicted + len(self.overlaid)
        return max(1 - bad / self.num_asked, 0.0)

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all.

        Raises:
            StoreError: see `write_text`.
        """
        write_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=1))

    @staticmethod
    def read(path: Path) -> Trust:
        """Reads what `write` wrote.

        Raises:
            StoreError: the file is damaged, or there is none.
        """
        try:
            found = json.loads(path.read_text("utf-8"))
            return Trust(
                num_asked=found["num_asked"],
                num_contradicted=found["num_contradicted"],
                left_out=tuple(WrongPair(**pair) for pair in found["left_out"]),
                overlaid=tuple(WrongPair(**pair) for pair in found["overlaid"]),
                broken=tuple(Contradiction(**pair) for pair in found["broken"]),
                cleared=tuple((name0, name1) for name0, name1 in found["cleared"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{path} is missing or damaged ({error}). Delete"
                f" {path.name.removesuffix(_CONSISTENCY)}.zip beside it; the next"
                " `sfmprep reconstruct` makes both again."
            ) from error


def measure_trust(
    database: Path,
    models: Sequence[pycolmap.Reconstruction],
    left_out: Iterable[WrongPair] = (),
    cleared: Iterable[Pair] = (),
) -> Trust:
    """Measures how far verified pairs and the largest model agree.

    Args:
        database: With all pairs, also those left out.
        models: Largest first; may be empty.
        left_out: Pairs that were not mapped with.
        cleared: Pairs that are known to be right.
    """
    return trust_of(judge(database, models[:1]), left_out, cleared)


def judge(
    database: Path, models: Sequence[pycolmap.Reconstruction]
) -> list[tuple[Asked, list[WrongPair]]]:
    """Of each model, what it says of the pairs and which of them are wrong."""
    return [judge_pairs(database, ModelArrays.of(model)) for model in models]


def trust_of(
    judged: Sequence[tuple[Asked, list[WrongPair]]],
    left_out: Iterable[WrongPair],
    cleared: Iterable[Pair],
) -> Trust:
    """What the first of the models, if there is one, is worth."""
    left_out, right = tuple(left_out), set(cleared)
    cleared = tuple(sorted(right))
    if not judged:
        return Trust(
            num_asked=0,
            num_contradicted=0,
            left_out=left_out,
            overlaid=(),
            cleared=cleared,
        )
    asked, overlaid = judged[0]
    is_explained = explained(asked, {(pair.name0, pair.name1) for pair in left_out})
    contradicted = (asked.fitting < _CONTRADICTED) & (asked.num_inliers >= _MIN_INLIERS)
    # a pair that was left out and is contradicted now is what was to be expected
    counted = ~is_explained | asked.agrees
    return Trust(
        num_asked=int(counted.sum()),
        num_contradicted=int((contradicted & ~is_explained).sum()),
        left_out=left_out,
        overlaid=tuple(
            pair for pair in overlaid if (pair.name0, pair.name1) not in right
        ),
        broken=tuple(
            Contradiction(
                name0=asked.pairs[row][0],
                name1=asked.pairs[row][1],
                num_inliers=int(asked.num_inliers[row]),
                share_fitting=round(float(asked.fitting[row]), 3),
            )
            for row in np.flatnonzero(asked.broken).tolist()
        ),
        cleared=cleared,
    )


def explained(asked: Asked, left_out: Container[Pair]) -> Mask:
    """Which pairs [P] look-alikes explain: those left out, and what follows of them.

    Where `a` and `b` look alike, `a` matches what `b` does, which is another place.

    Args:
        asked: All verified pairs.
        left_out: Names of pairs, each in their order.
    """
    known = np.array([pair in left_out for pair in asked.pairs], bool)
    if not len(known):
        return known
    alike = _adjacency(asked, known)
    agrees = _adjacency(asked, asked.agrees & ~known)
    reached = (alike @ agrees + agrees @ alike).tocsr()
    one, two = asked.index.T
    follows: Mask = np.asarray(reached[one, two]).reshape(-1) > 0
    return known | (follows & ~asked.broken)


def _adjacency(asked: Asked, chosen: Mask) -> csr_matrix:
    one, two = asked.index[chosen].T
    shape = (len(asked.names),) * 2
    half = csr_matrix((np.ones(len(one)), (one, two)), shape)
    return half + half.T


def leave_out(database: Path, reduced: Path, pairs: Iterable[WrongPair]) -> None:
    """Copies a database into another, without the verified geometry of pairs."""
    copy_database(database, reduced)
    with pycolmap.Database.open(reduced) as opened:
        id_of = {image.name: image.image_id for image in opened.read_all_images()}
        for pair in pairs:
            ids = id_of[pair.name0], id_of[pair.name1]
            if opened.exists_two_view_geometry(*ids):
                opened.delete_two_view_geometry(*ids)
