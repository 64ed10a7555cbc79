"""What follows a first run: images and models added, other starts, models continued."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.budget import Budget
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.mapping import rounds
from sfmprep.mapping.carry_over import carry_over, open_cache
from sfmprep.mapping.chance import needed_inliers
from sfmprep.mapping.mapper import continue_models, map_images
from sfmprep.mapping.merge import merge_models
from sfmprep.mapping.register import register_more
from sfmprep.mapping.runs import Run, map_incrementally
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.progress import silent
from sfmprep.types import Float64, Index
from tests.support.orbit import lens, orbit

LENS = lens("SIMPLE_RADIAL", 650)

Rotations = dict[str, Float64]


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def capture(path: Path, num_images: int = 10, turn: float = 1.6) -> Rotations:
    """A database with the matches of an orbit, not verified; the true rotations."""
    poses = orbit(
        path, LENS, guess_px=650, is_prior=True, num_images=num_images, turn=turn
    )
    return {name: pose.rotation for name, pose in poses.items()}


def verify(path: Path, pairs: Pairs) -> None:
    verify_matches(path, pairs, DatabaseConfig(), num_threads=1)


def change_matches(
    path: Path, change: Callable[[str, str, Index], Index | None]
) -> None:
    """Replaces the matches of pairs; None removes them."""
    with pycolmap.Database.open(path) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        for id0, id1 in itertools.combinations(sorted(names), 2):
            if not database.exists_matches(id0, id1):
                continue
            old = database.read_matches(id0, id1)
            new = change(names[id0], names[id1], np.asarray(old))
            database.delete_matches(id0, id1)
            if new is not None:
                database.write_matches(id0, id1, new.astype(np.uint32))


def images_of(path: Path) -> ImageSet:
    with pycolmap.Database.open(path) as database:
        names = tuple(sorted(image.name for image in database.read_all_images()))
    return ImageSet(path.parent, names, {}, {})


def run_of(path: Path, folder: Path) -> Run:
    folder.mkdir()
    return Run(
        database=path,
        images=images_of(path),
        folder=folder,
        config=MappingConfig(),
        cameras=DatabaseConfig(),
        scales=None,
        seed=0,
        progress=silent,
    )


def cache_of(path: Path) -> pycolmap.DatabaseCache:
    with pycolmap.Database.open(path) as database:
        return open_cache(database, 15)


def largest_error_deg(
    model: pycolmap.Reconstruction, truth: Mapping[str, Float64]
) -> float:
    """Of the rotations between all images of a model."""
    images = [model.images[key] for key in model.reg_image_ids()]
    turned = [image.cam_from_world().rotation.matrix() for image in images]
    errors = [0.0]
    for (a, first), (b, second) in itertools.combinations(
        zip(images, turned, strict=True), 2
    ):
        real = truth[b.name] @ truth[a.name].T
        cosine = (np.trace(second @ first.T @ real.T) - 1) / 2
        errors.append(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))
    return max(errors)


def names_in(model: pycolmap.Reconstruction) -> set[str]:
    return {model.images[key].name for key in model.reg_image_ids()}


# ------------------------------------------------------------------- nothing is missing
def test_whole_capture_costs_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "database.db"
    verify(path, exhaustive_pairs(sorted(capture(path, 6))))

    def never(*_: object) -> None:
        raise AssertionError("nothing was missing")

    for name in ("register_more", "merge_models", "map_globally", "initial_pairs"):
        monkeypatch.setattr(rounds, name, never)
    (model,) = map_images(path, images_of(path), tmp_path / "m", MappingConfig())
    assert model.num_reg_images() == 6


# ------------------------------------------------------------------- images, one by one
def weaken(path: Path, weak: str, partners: Mapping[str, int]) -> None:
    """Leaves an image few matches, of the same points, and with these others only."""

    def change(name0: str, name1: str, matches: Index) -> Index | None:
        if weak not in (name0, name1):
            return matches
        other = name1 if name0 == weak else name0
        return matches[: partners[other]] if other in partners else None

    change_matches(path, change)


@pytest.mark.parametrize(
    ("partners", "is_added"),
    [({"03.jpg": 19, "04.jpg": 19}, True), ({"03.jpg": 22}, False)],
    ids=["two pairs", "one weak pair"],
)
def test_image_of_few_matches_is_added_where_two_pairs_hold_it(
    partners: dict[str, int], is_added: bool, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    truth = capture(path, 8)
    weaken(path, "05.jpg", partners)
    verify(path, exhaustive_pairs(sorted(truth)))
    run = run_of(path, tmp_path / "run")
    (model,) = map_incrementally(run)
    assert "05.jpg" not in names_in(model)
    grown, added = register_more(run, model, cache_of(path))
    assert added == (["05.jpg"] if is_added else [])
    assert grown.num_reg_images() == 7 + is_added
    assert model.num_reg_images() == 7
    assert largest_error_deg(grown, truth) < 1


def test_inliers_that_are_needed_follow_their_chance() -> None:
    assert needed_inliers(20, 0.01) == 9
    assert needed_inliers(20, 0.001) == 7
    assert needed_inliers(200, 0.01) == 23
    assert needed_inliers(5, 0.01) is None
    assert needed_inliers(100, 1.0) is None
    assert needed_inliers(0, 0.01) is None


# ------------------------------------------------------------------------------- models
def two_models(
    run: Run, names: tuple[str, ...], first: slice, second: slice
) -> list[pycolmap.Reconstruction]:
    models = [map_incrementally(run, names=names[part])[0] for part in (first, second)]
    # each in a frame and of a size of its own, as models are
    models[1].transform(
        pycolmap.Sim3d(2.5, pycolmap.Rotation3d(np.array([0.3, -1, 0.2])), [4, 5, 6])
    )
    return models


@pytest.mark.parametrize("second", [slice(4, 10), slice(5, 10)])
def test_models_that_share_images_or_points_are_joined(
    second: slice, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    truth = capture(path)
    names = tuple(sorted(truth))
    verify(path, exhaustive_pairs(names))
    run = run_of(path, tmp_path / "run")
    models = two_models(run, names, slice(0, 6 - (second.start == 5)), second)
    (merged,), apart = merge_models(run, models, cache_of(path))
    assert apart == []
    assert names_in(merged) == set(names)
    assert largest_error_deg(merged, truth) < 0.3
    assert len(names_in(models[0])) < 10  # those that came in stay as they are


def mix_up(path: Path, first: set[str], share: float) -> None:
    """Matches a share of what is between two sets of images to something else."""
    rng = np.random.default_rng(0)
    wrong = rng.permutation(400)  # one for all, so that tracks agree with each other

    def change(name0: str, name1: str, matches: Index) -> Index:
        if (name0 in first) == (name1 in first):
            return matches
        matches = matches.copy()
        rows = matches[:, 0] < share * 400
        matches[rows, 1] = wrong[matches[rows, 0]]
        return matches

    change_matches(path, change)


def test_models_stay_apart_where_tracks_held_out_disagree(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = capture(path)
    names = tuple(sorted(truth))
    verify(path, exhaustive_pairs(names))
    run = run_of(path, tmp_path / "run")
    models = two_models(run, names, slice(0, 5), slice(5, 10))
    mix_up(path, set(names[:5]), share=0.8)
    # as if each wrong pair had passed
    with pycolmap.Database.open(path) as database:
        for id0 in range(1, 6):
            for id1 in range(6, 11):
                if database.exists_two_view_geometry(id0, id1):
                    geometry = database.read_two_view_geometry(id0, id1)
                    geometry.inlier_matches = database.read_matches(id0, id1)
                    database.update_two_view_geometry(id0, id1, geometry)
    left, (apart,) = merge_models(run, models, cache_of(path))
    assert [model.num_reg_images() for model in left] == [5, 5]
    assert (apart.first, apart.second) == (0, 1)
    assert apart.reason.endswith("held out agree on how one lies in the other")


@pytest.mark.parametrize(
    ("num_matches", "reason"),
    [
        (8, "they share 8 points, 12 are needed"),
        (24, "no more than one weak pair, or one image, ties them together"),
    ],
)
def test_models_that_share_too_little_say_so(
    num_matches: int, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    truth = capture(path)
    names = tuple(sorted(truth))
    verify(path, exhaustive_pairs(names))
    run = run_of(path, tmp_path / "run")
    models = two_models(run, names, slice(0, 5), slice(5, 10))
    sees = [
        {e.point2D_idx for p in m.points3D.values() for e in p.track.elements}
        for m in models
    ]
    with pycolmap.Database.open(path) as database:
        for id0, id1 in itertools.product(range(1, 6), range(6, 11)):
            if not database.exists_two_view_geometry(id0, id1):
                continue
            geometry = database.read_two_view_geometry(id0, id1)
            matches = np.asarray(geometry.inlier_matches)
            seen = [sees[0] & sees[1] >= {a, b} for a, b in matches.tolist()]
            some = np.cumsum(seen) <= (num_matches if (id0, id1) == (5, 6) else 0)
            geometry.inlier_matches = matches[some & np.array(seen)]
            database.update_two_view_geometry(id0, id1, geometry)
    cache = _all_pairs(path)
    _, (apart,) = merge_models(run, models, cache)
    assert apart.reason == reason


def _all_pairs(path: Path) -> pycolmap.DatabaseCache:
    with pycolmap.Database.open(path) as database:
        return open_cache(database, 1)


def test_one_model_or_none_has_nothing_to_be_joined_with(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    verify(path, exhaustive_pairs(sorted(capture(path, 3))))
    run = run_of(path, tmp_path / "run")
    assert merge_models(run, [], cache_of(path)) == ([], [])


# ------------------------------------------------------------------------- other starts
def test_start_is_from_the_images_that_were_named(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    verify(path, exhaustive_pairs(sorted(capture(path, 6))))
    run = run_of(path, tmp_path / "run")
    for pair in ((2, 4), (5, 3)):
        (model,) = map_incrementally(run, start=pair)
        assert set(rounds._first_images(model)) == set(pair)
        assert model.num_reg_images() == 6


def test_what_is_missing_is_sought_from_other_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "database.db"
    truth = capture(path, 8)
    first = set(sorted(truth)[:4])

    def change(name0: str, name1: str, matches: Index) -> Index | None:
        if (name0 in first) == (name1 in first):
            return matches
        # one weak pair: neither a pose nor a model may hang on it
        return matches[:17] if (name0, name1) == ("03.jpg", "04.jpg") else None

    change_matches(path, change)
    verify(path, exhaustive_pairs(sorted(truth)))
    starts: list[object] = []
    plain = rounds.map_incrementally

    def recorded(run: Run, **options: object) -> list[pycolmap.Reconstruction]:
        starts.append(options.get("start"))
        return plain(run, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "map_incrementally", recorded)
    with caplog.at_level(logging.INFO, "sfmprep.mapping.rounds"):
        models = map_images(path, images_of(path), tmp_path / "m", MappingConfig())
    assert [model.num_reg_images() for model in models] == [4, 4]
    assert 1 <= len(starts) <= 2
    said = [r.message for r in caplog.records if " are missing: " in r.message]
    assert said[0].startswith("4 of 8 images are missing: the global mapper, some ")
    assert len(said) == 1 + len(starts)
    caplog.clear()
    starts.clear()
    with caplog.at_level(logging.INFO, "sfmprep.mapping.rounds"):
        again = map_images(
            *(path, images_of(path), tmp_path / "n", MappingConfig()), budget=Budget(0)
        )
    assert [model.num_reg_images() for model in again] == [4, 4]
    assert not starts
    assert caplog.messages[-1].startswith("no other start: it takes some ")
    assert caplog.messages[-1].endswith(" s, and 0 s are left")
    monkeypatch.setattr(rounds, "only_turns", lambda models, names: True)
    with caplog.at_level(logging.INFO, "sfmprep.mapping.rounds"):
        turned = map_images(path, images_of(path), tmp_path / "t", MappingConfig())
    assert [model.num_reg_images() for model in turned] == [4, 4]
    assert not starts
    assert (
        caplog.messages[-1] == "the camera only turned: no other start can find a depth"
    )


def test_model_that_contradicts_pairs_is_not_better(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = capture(path, 6)
    verify(path, exhaustive_pairs(sorted(truth)))
    run = run_of(path, tmp_path / "run")
    (whole,) = map_incrementally(run)
    (part,) = map_incrementally(run, names=sorted(truth)[:5])
    matches = rounds.VerifiedMatches(cache_of(path))
    assert rounds._is_better(run, [whole], [part], matches)
    assert not rounds._is_better(run, [part], [whole], matches)
    wrong = pycolmap.Reconstruction(whole)
    frame = wrong.frames[wrong.images[6].frame_id]
    turned = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0.5, 0])), [0, 0, 0])
    frame.rig_from_world = turned * frame.rig_from_world
    assert not rounds._is_better(run, [wrong], [part], matches)


# ---------------------------------------------------------------------------- continued
def test_model_goes_on_with_pairs_that_came_later(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = capture(path)
    names = tuple(sorted(truth))
    verify(path, exhaustive_pairs(names[:6]))
    early = map_images(path, images_of(path), tmp_path / "early", MappingConfig())
    assert [names_in(model) for model in early] == [set(names[:6])]
    verify(path, exhaustive_pairs(names))
    later = continue_models(
        early, path, images_of(path), tmp_path / "later", MappingConfig()
    )
    assert [names_in(model) for model in later] == [set(names)]
    assert largest_error_deg(later[0], truth) < 0.3
    assert early[0].num_reg_images() == 6
    written = pycolmap.Reconstruction(tmp_path / "later" / "0")
    assert written.num_reg_images() == 10
    assert continue_models([], path, images_of(path), path, MappingConfig()) == []


def test_a_model_goes_on_with_principal_points_that_were_given(tmp_path: Path) -> None:
    """`auto` would move them to where the photographs tell them."""
    path = tmp_path / "database.db"
    truth = capture(path)
    verify(path, exhaustive_pairs(tuple(sorted(truth))))
    images = images_of(path)
    begun = map_images(path, images, tmp_path / "begun", MappingConfig())
    camera = begun[0].cameras[1]
    params = camera.params.copy()
    params[1] += 20
    camera.params = params
    given = dict.fromkeys(truth, pycolmap.Camera(camera.todict()))
    for cameras, off in ({}, 0), (given, 20):
        (model,) = continue_models(
            *(begun, path, images, tmp_path / str(off), MappingConfig()), given=cameras
        )
        found = model.cameras[1].params[1] - LENS.width / 2
        assert found == pytest.approx(off, abs=1e-9 if off else 5)


def test_part_that_came_later_is_a_model_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = capture(path)
    names = tuple(sorted(truth))
    verify(path, exhaustive_pairs(names[:5]))
    early = map_images(path, images_of(path), tmp_path / "early", MappingConfig())
    verify(path, exhaustive_pairs(names[5:]))
    later = continue_models(
        early, path, images_of(path), tmp_path / "later", MappingConfig()
    )
    assert {frozenset(names_in(model)) for model in later} == {
        frozenset(names[:5]),
        frozenset(names[5:]),
    }


def test_model_is_carried_to_a_database_with_other_ids_and_more_keypoints(
    tmp_path: Path,
) -> None:
    path = tmp_path / "database.db"
    names = sorted(capture(path, 5))
    verify(path, exhaustive_pairs(names))
    (model,) = map_incrementally(run_of(path, tmp_path / "run"))
    grown = tmp_path / "grown.db"
    with (
        pycolmap.Database.open(path) as old,
        pycolmap.Database.open(grown) as new,
    ):
        camera = old.read_all_cameras()[0]
        rig = pycolmap.Rig()
        rig.add_ref_sensor(camera.sensor_id)
        new.write_camera(camera, use_camera_id=True)
        rig_id = new.write_rig(rig)
        ids = {}
        for image in reversed(old.read_all_images()):
            ids[image.image_id] = new.write_image(
                pycolmap.Image(name=image.name, camera_id=camera.camera_id)
            )
            frame = pycolmap.Frame()
            frame.rig_id = rig_id
            written = new.read_image(ids[image.image_id])
            frame.add_data_id(written.data_id)
            new.write_frame(frame)
            keypoints = old.read_keypoints(image.image_id)
            before = np.full((7, keypoints.shape[1]), 3.0, np.float32)
            new.write_keypoints(ids[image.image_id], np.vstack([before, keypoints]))
        for id0, id1 in itertools.combinations(sorted(ids), 2):
            geometry = old.read_two_view_geometry(id0, id1)
            geometry.inlier_matches = np.asarray(geometry.inlier_matches) + 7
            new.write_two_view_geometry(ids[id0], ids[id1], geometry)
    carried = carry_over(model, cache_of(grown))
    assert names_in(carried) == names_in(model)
    assert carried.num_points3D() == model.num_points3D()
    assert carried.compute_num_observations() == model.compute_num_observations()
    carried.update_point_3d_errors()
    assert carried.compute_mean_reprojection_error() == pytest.approx(
        model.compute_mean_reprojection_error(), rel=1e-3
    )
