"""Places that look alike: what is absent, which pairs go, and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pycolmap
import pytest

from sfmprep.errors import StoreError
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping import trusted as trust_module
from sfmprep.mapping.contradictions import Contradiction
from sfmprep.mapping.trust import (
    Trust,
    consistency_of,
    explained,
    measure_trust,
)
from sfmprep.mapping.trusted import map_trusted
from sfmprep.mapping.unheld import Unheld
from sfmprep.mapping.wrong_pairs import (
    Asked,
    WrongPair,
    find_wrong_pairs,
    gather,
    judge_pairs,
)
from tests.bench.repeats import map_plainly
from tests.support.repeats import facades, photograph, plain, wrong_share

PAIR = WrongPair(
    name0="a.jpg", name1="b.jpg", num_inliers=50, absent=0.25, certainty=0.9
)


def test_a_house_with_two_equal_fronts_is_unfolded(tmp_path: Path) -> None:
    database = tmp_path / "database.db"
    truth = photograph(facades(0), database, seed=0)
    folded: list[pycolmap.Reconstruction] = []

    def mapper(path: Path, folder: Path) -> list[pycolmap.Reconstruction]:
        models = map_plainly(path, folder)
        folded.append(models[0])
        return models

    (model,), trust = map_trusted(database, tmp_path / "models", mapper)
    assert wrong_share(folded[0], truth) > 0.3
    assert model.num_reg_images() == len(truth)
    assert wrong_share(model, truth) == 0
    assert trust.consistency > 0.95
    assert not trust.overlaid
    # every pair that was left out joins two sides of the house
    for pair in trust.left_out:
        axes = [truth[name].rotation[2] for name in (pair.name0, pair.name1)]
        assert axes[0] @ axes[1] < 0.5
    # the folded model itself is told to be wrong
    assert measure_trust(database, folded[:1]).overlaid


def test_a_house_without_repetition_is_mapped_once(tmp_path: Path) -> None:
    database = tmp_path / "database.db"
    truth = photograph(plain(0), database, seed=0)
    places: list[Path] = []

    def mapper(path: Path, folder: Path) -> list[pycolmap.Reconstruction]:
        places.append(path)
        return map_plainly(path, folder)

    models, trust = map_trusted(database, tmp_path / "models", mapper)
    assert places == [database]
    assert wrong_share(models[0], truth) == 0
    assert (trust.left_out, trust.overlaid) == ((), ())
    assert trust.consistency == 1


def test_no_model_is_worth_nothing_and_nothing_is_wrong(tmp_path: Path) -> None:
    models, trust = map_trusted(tmp_path / "x.db", tmp_path / "models", lambda *_: [])
    assert models == []
    assert (trust.num_asked, trust.consistency) == (0, 1.0)
    database = tmp_path / "empty.db"
    pycolmap.Database.open(database).close()
    assert judge_pairs(database, ModelArrays.of(pycolmap.Reconstruction()))[1] == []


def test_groups_are_joined_while_the_sum_is_for_it() -> None:
    index = np.array([(0, 1), (1, 2), (2, 3), (0, 2), (0, 3), (1, 3)])
    label = gather(5, index, np.array([9.0, 2.0, 9.0, -3.0, -3.0, 1.0]))
    assert label[0] == label[1]
    assert label[2] == label[3]
    assert len(set(label.tolist())) == 3
    together = gather(5, index, np.array([9.0, 2.0, 9.0, -3.0, 1.0, 1.0]))
    assert len(set(together.tolist())) == 2
    assert gather(0, np.empty((0, 2), np.int64), np.empty(0)).tolist() == []


def test_trust_comes_back_as_it_was_written(tmp_path: Path) -> None:
    trust = Trust(
        num_asked=20,
        num_contradicted=1,
        left_out=(PAIR,),
        overlaid=(PAIR,),
        broken=(
            Contradiction(
                name0="a.jpg", name1="b.jpg", num_inliers=40, share_fitting=0.2
            ),
        ),
        cleared=(("a.jpg", "c.jpg"),),
    )
    path = consistency_of(tmp_path / "mapped_on.zip")
    assert path == tmp_path / "mapped_on_consistency.json"
    trust.write(path)
    assert Trust.read(path).__dict__ == trust.__dict__
    assert trust.consistency == 0.9


def test_damaged_trust_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "mapped_on_consistency.json"
    path.write_text("{}")
    with pytest.raises(StoreError) as caught:
        Trust.read(path)
    assert str(caught.value) == (
        f"{path} is missing or damaged ('num_asked'). Delete"
        " mapped_on.zip beside it; the next `sfmprep reconstruct` makes both again."
    )


def _asked(
    names: str, pairs: dict[str, tuple[float, float]], *, num_inliers: int = 100
) -> Asked:
    """Pairs such as "ab", with how far they fit the poses and what is absent."""
    return Asked(
        names=tuple(names),
        index=np.array(
            [[names.index(one), names.index(two)] for one, two in pairs], np.int64
        ).reshape(-1, 2),
        num_inliers=np.full(len(pairs), num_inliers),
        repeated=np.zeros(len(pairs)),
        fitting=np.array([fitting for fitting, _ in pairs.values()]),
        absent=np.array([absent for _, absent in pairs.values()]),
        found=np.full(len(pairs), num_inliers),
        shared=[np.empty(0, np.int64)] * len(pairs),
    )


@pytest.mark.parametrize(
    ("registered", "broken", "kept"), [(9, 0, True), (8, 0, False), (10, 1, False)]
)
def test_the_order_counts_if_it_costs_few_images(
    registered: int,
    broken: int,
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = tmp_path / "database.db"
    pycolmap.Database.open(database).close()

    def of_size(size: int) -> pycolmap.Reconstruction:
        return cast(
            "pycolmap.Reconstruction", SimpleNamespace(num_reg_images=lambda: size)
        )

    first, again = of_size(10), of_size(registered)
    mapped = iter([first, again])
    breaks = {id(first): 1, id(again): broken}

    def judged(_: Path, models: list[pycolmap.Reconstruction]) -> list[object]:
        asked = _asked("abcd", {"ab": (1.0, 0.0), "bc": (0.0, 0.0), "cd": (1.0, 0.0)})
        is_broken = np.arange(3) < breaks[id(models[0])]
        return [(SimpleNamespace(**asked.__dict__, broken=is_broken), [])]

    monkeypatch.setattr(trust_module, "judge", judged)
    monkeypatch.setattr(
        *(trust_module, "_in_loops"),
        lambda _, models, __: [PAIR] if models[0] is first else [],
    )
    monkeypatch.setattr(trust_module, "leave_out", lambda *_: None)
    monkeypatch.setattr(
        trust_module, "trust_of", lambda _, left_out, __: tuple(left_out)
    )
    monkeypatch.setattr(trust_module, "_held", lambda *given: given[-1])
    models, left_out = map_trusted(
        database, tmp_path / "models", lambda *_: [next(mapped)]
    )
    assert models == [again if kept else first]
    assert left_out == ((PAIR,) if kept else ())


@pytest.mark.parametrize(
    ("agrees", "still_wrong", "model", "left_out", "cleared"),
    [
        ("", "", 1, "ab cd", ""),  # two look-alikes: the new model contradicts both
        ("ab cd", "", 0, "", "ab cd"),  # both right: as before
        ("ab cd", "ab cd", 1, "ab cd", ""),  # the overlay is still there, and found
        ("ab", "", 1, "cd", "ab"),
    ],
)
def test_pairs_that_a_model_without_them_agrees_with_are_right(
    agrees: str,
    still_wrong: str,
    model: int,
    left_out: str,
    cleared: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = tmp_path / "database.db"
    pycolmap.Database.open(database).close()
    made = [pycolmap.Reconstruction() for _ in range(2)]
    mapped = iter(made)
    pairs = {"ab": PAIR, "cd": replace(PAIR, name0="c.jpg", name1="d.jpg")}

    def judged(
        _: Path, models: list[pycolmap.Reconstruction]
    ) -> list[tuple[Asked, list[WrongPair]]]:
        fits = "ab cd" if models[0] is made[0] else agrees
        asked = Asked(
            **{
                **_asked(
                    "abcd", {k: (float(k in fits), np.nan) for k in pairs}
                ).__dict__,
                "names": ("a.jpg", "b.jpg", "c.jpg", "d.jpg"),
            }
        )
        wrong = "ab cd" if models[0] is made[0] else still_wrong
        return [(asked, [pairs[name] for name in wrong.split()])]

    monkeypatch.setattr(trust_module, "judge", judged)
    monkeypatch.setattr(trust_module, "leave_out", lambda *_: None)
    models, trust = map_trusted(
        database, tmp_path / "models", lambda *_: [next(mapped)]
    )
    assert models == [made[model]]
    assert trust.left_out == tuple(pairs[name] for name in left_out.split())
    assert trust.cleared == tuple(
        (pairs[name].name0, pairs[name].name1) for name in cleared.split()
    )
    assert not set(trust.overlaid).difference(pairs[n] for n in still_wrong.split())


def test_pairs_left_out_before_may_be_right_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "database.db"
    pycolmap.Database.open(database).close()
    made = [pycolmap.Reconstruction() for _ in range(3)]
    mapped = iter(made)
    other = replace(PAIR, name0="c.jpg", name1="d.jpg")
    # the second model contradicts the first pair, the third agrees with both
    says = [(1.0, [PAIR]), (0.0, [other]), (1.0, [])]
    names = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")

    def judged(
        _: Path, models: list[pycolmap.Reconstruction]
    ) -> list[tuple[Asked, list[WrongPair]]]:
        agrees, wrong = says[[model is models[0] for model in made].index(True)]
        asked = _asked("abcd", {"ab": (agrees, np.nan), "cd": (1.0, np.nan)})
        return [(replace(asked, names=names), wrong)]

    monkeypatch.setattr(trust_module, "_in_loops", lambda *_: [])
    monkeypatch.setattr(trust_module, "find_unheld", lambda *_: [])
    monkeypatch.setattr(trust_module, "judge", judged)
    monkeypatch.setattr(trust_module, "leave_out", lambda *_: None)
    models, trust = map_trusted(
        database, tmp_path / "models", lambda *_: [next(mapped)]
    )
    assert models == [made[1]]
    assert trust.left_out == ()
    assert trust.cleared == (("a.jpg", "b.jpg"), ("c.jpg", "d.jpg"))


@pytest.mark.parametrize("is_mended", [True, False])
def test_views_that_hang_against_their_pairs_are_mapped_again_or_parted(
    is_mended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "database.db"
    pycolmap.Database.open(database).close()
    first, again, rest = (pycolmap.Reconstruction() for _ in range(3))
    asked = {id(model): _asked("ab", {"ab": (1.0, 0.0)}) for model in (first, again)}
    hanging = Unheld(names=frozenset("b"), wrong=(PAIR,))
    monkeypatch.setattr(
        *(trust_module, "judge"),
        lambda _, models: [(asked.get(id(model)), []) for model in models],
    )
    monkeypatch.setattr(
        *(trust_module, "find_unheld"),
        lambda _, __, told, ___: (
            [] if told is asked[id(again)] and is_mended else [hanging]
        ),
    )
    monkeypatch.setattr(
        *(trust_module, "part"),
        lambda models, unheld, _: models if not any(unheld) else [*models, rest],
    )
    monkeypatch.setattr(trust_module, "_in_loops", lambda *_: [])
    monkeypatch.setattr(trust_module, "leave_out", lambda *_: None)
    monkeypatch.setattr(trust_module, "trust_of", lambda _, left_out, __: [*left_out])
    mapped = iter([first, again])
    models, left_out = map_trusted(
        database, tmp_path / "models", lambda *_: [next(mapped)]
    )
    assert models == ([again] if is_mended else [first, rest])
    assert left_out == ([PAIR] if is_mended else [])


def test_a_pair_that_follows_from_a_look_alike_contradicts_nothing() -> None:
    # b looks like x; so a, which matches b, was matched with x, too
    pairs = {"ab": (1.0, 0.0), "bx": (0.0, 0.3), "ax": (0.1, 0.0), "ay": (0.1, 0.0)}
    asked = _asked("abxy", pairs)
    assert explained(asked, {("b", "x")}).tolist() == [False, True, True, False]
    assert explained(asked, set()).tolist() == [False] * 4
    assert explained(_asked("ab", {}), set()).tolist() == []


def test_between_photographs_in_a_row_only_their_own_evidence_counts() -> None:
    # two rows of names that lie on each other: c and p match, and so does the rest
    inside = {"ab": (1.0, 0.0), "bc": (1.0, 0.0), "pq": (1.0, 0.0), "qr": (1.0, 0.0)}
    across = {"ap": (1.0, 0.4), "bq": (1.0, 0.4), "cr": (1.0, 0.4)}
    unknown = {"cp": (1.0, np.nan), "bp": (1.0, np.nan)}
    wrong = find_wrong_pairs(_asked("abcpqr", inside | across | unknown))
    assert [pair.name0 + pair.name1 for pair in wrong] == ["ap", "bp", "bq", "cr"]
