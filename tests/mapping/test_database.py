"""Databases of our own: new, verified, grown by a photograph; their cameras."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.errors import ConfigError, StoreError
from sfmprep.mapping import database as database_module
from sfmprep.mapping.cameras import infer_camera
from sfmprep.mapping.database import (
    add_images,
    open_database,
    update_database,
    write_errors,
)
from sfmprep.mapping.verify import (
    VerifiedPairs,
    count_inliers,
    read_verified,
    verify_matches,
)
from sfmprep.mapping.view_graph import read_pair_table
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, Matches


# ------------------------------------------------------------------------- synthetic
def features_at(
    xy: np.ndarray, size: tuple[int, int], with_shape: bool = False
) -> Features:
    ones = np.ones(len(xy), np.float32)
    return Features(
        xy=xy.astype(np.float32),
        scores=ones,
        descriptors=np.zeros((len(xy), 4), np.float16),
        image_size=size,
        scale=3 * ones if with_shape else None,
        angle=0.5 * ones if with_shape else None,
    )


class Capture:
    """Images on disk with stores of random keypoints; every pair has its matches."""

    def __init__(
        self, folder: Path, sizes: dict[str, tuple[int, int]], num_keypoints: int = 50
    ) -> None:
        for name, size in sizes.items():
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(folder / "images" / name)
        self.images = ImageSet.scan(folder / "images")
        self.pairs = exhaustive_pairs(self.images.names)
        self.features = FeatureStore(folder / "features.h5", {})
        self.matches = MatchStore(folder / "matches.h5", {})
        rng = np.random.default_rng(0)
        for name, info in self.images.infos.items():
            xy = rng.uniform(0, min(info.size), (num_keypoints, 2))
            self.features.append([(name, features_at(xy, info.size, True))])
        index = np.stack([np.arange(num_keypoints, dtype=np.int32)] * 2, 1)
        matches = Matches(index=index, scores=np.ones(len(index), np.float32))
        self.matches.append([(pair, matches) for pair in self.pairs])

    def write(self, path: Path, config: DatabaseConfig | None = None) -> None:
        update_database(
            path,
            self.images,
            self.features,
            self.matches,
            self.pairs,
            config or DatabaseConfig(),
        )


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[Capture]:
    capture = Capture(tmp_path, {f"{k}.png": (64, 48) for k in range(4)})
    with capture.features, capture.matches:
        yield capture


def test_new_database_holds_keypoints_and_matches(
    capture: Capture, tmp_path: Path
) -> None:
    capture.write(tmp_path / "new.db")
    with pycolmap.Database.open(tmp_path / "new.db") as database:
        assert database.num_images() == 4
        assert database.num_cameras() == database.num_rigs() == 1
        assert database.num_frames() == 4
        assert database.num_matched_image_pairs() == 6
        image = database.read_image_with_name("2.png")
        stored = capture.features.get("2.png")
        rows = database.read_keypoints(image.image_id)
        np.testing.assert_array_equal(rows[:, :2], stored.xy)
        np.testing.assert_array_equal(rows[:, 2:4], [[3, 0.5]] * 50)
    assert not list(tmp_path.glob("*.part*")) and not list(tmp_path.glob(".*.part*"))


def test_what_sensors_tell_becomes_pose_priors(
    capture: Capture, tmp_path: Path
) -> None:
    told: dict[str, dict[str, Any]] = {
        "0.png": {"gps": (48.0, 11.0, 500.0)},
        "1.png": {"gps": (48.0, 11.0, None)},
        "2.png": {"gravity": (0.0, 0.6, 0.8), "gps": (48.0, 11.1, 501.0)},
        "3.png": {"gravity": (1.0, 0.0, 0.0)},
    }
    infos = {n: replace(capture.images.infos[n], **told[n]) for n in told}
    capture.images = replace(capture.images, infos=infos)
    capture.write(tmp_path / "new.db")
    with pycolmap.Database.open(tmp_path / "new.db") as database:
        names = {image.data_id: image.name for image in database.read_all_images()}
        priors = {names[p.corr_data_id]: p for p in database.read_all_pose_priors()}
    assert priors.keys() == {"0.png", "2.png", "3.png"}
    wgs84 = pycolmap.PosePriorCoordinateSystem.WGS84
    assert priors["0.png"].coordinate_system == wgs84
    np.testing.assert_array_equal(priors["0.png"].position, (48, 11, 500))
    assert not priors["0.png"].has_gravity()
    np.testing.assert_array_equal(priors["2.png"].position, (48, 11.1, 501))
    np.testing.assert_array_equal(priors["2.png"].gravity, (0, 0.6, 0.8))
    assert not priors["3.png"].has_position()
    np.testing.assert_array_equal(priors["3.png"].gravity, (1, 0, 0))


def test_pairs_that_are_not_wanted_are_left_out(
    capture: Capture, tmp_path: Path
) -> None:
    capture.pairs = Pairs.of([("0.png", "1.png")])
    capture.write(tmp_path / "new.db")
    with pycolmap.Database.open(tmp_path / "new.db") as database:
        assert database.num_matched_image_pairs() == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_stopped_import_leaves_the_database_as_it_was(
    error: type[BaseException], capture: Capture, tmp_path: Path
) -> None:
    path = tmp_path / "project.db"
    capture.write(path)
    verify_matches(path, capture.pairs, DatabaseConfig(min_num_inliers=5))
    before = read_verified(path)

    def stop(items: object, **options: object) -> Iterator[object]:
        assert isinstance(items, Iterator)
        yield next(items)
        raise error

    with pytest.raises(error):
        update_database(
            path,
            capture.images,
            capture.features,
            capture.matches,
            capture.pairs,
            DatabaseConfig(),
            progress=stop,
        )
    assert read_verified(path) == before
    assert not list(tmp_path.glob(".*.part*"))
    with pytest.raises(error):
        update_database(
            tmp_path / "new.db",
            capture.images,
            capture.features,
            capture.matches,
            capture.pairs,
            DatabaseConfig(),
            progress=stop,
        )
    assert not (tmp_path / "new.db").exists()


def test_full_disk_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    capture = Capture(tmp_path, {f"{k:02}.png": (64, 48) for k in range(20)}, 400)
    path, pairs = tmp_path / "project.db", capture.pairs
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with capture.features, capture.matches:
        capture.pairs = Pairs(pairs.items[:3])
        capture.write(path)
        capture.pairs = pairs
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        try:
            with pytest.raises(StoreError) as caught:
                capture.write(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(caught.value).startswith(f"{path} cannot be written (")
        assert read_verified(path).num_pairs == 3
        capture.write(path)
        assert read_verified(path).num_pairs == 190


@pytest.mark.parametrize(
    "error", [RuntimeError("index 3 is out of range"), OSError("the store is cut")]
)
def test_errors_that_are_not_of_the_database_stay_what_they_are(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught, write_errors(tmp_path / "a.db"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[database_sqlite.cc:9] SQLite error: disk I/O error"),
        sqlite3.OperationalError("database is locked"),
        OSError(28, "No space left on device", "folder/.a.db.part"),
    ],
)
def test_errors_of_the_database_say_what_to_do(error: Exception) -> None:
    with pytest.raises(StoreError) as caught, write_errors(Path("folder/a.db")):
        raise error
    assert str(caught.value) == (
        f"folder/a.db cannot be written ({error}). Close COLMAP if it has it open, free"
        " some disk space, and run the same command again."
    )


def test_2000_pairs_are_imported(tmp_path: Path) -> None:
    capture = Capture(tmp_path, {f"{k:03}.png": (64, 48) for k in range(64)}, 400)
    with capture.features, capture.matches:
        capture.write(tmp_path / "large.db")
    with pycolmap.Database.open(tmp_path / "large.db") as database:
        assert database.num_matched_image_pairs() == 2016


# ------------------------------------------------------------------------ verification
@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A database of nine images with a quarter of wrong matches, not verified."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 3, 3
    options.num_points3D, options.inlier_match_ratio = 200, 0.75
    pycolmap.set_random_seed(1)
    path = tmp_path / "synthetic.db"
    with pycolmap.Database.open(path) as database:
        pycolmap.synthesize_dataset(options, database)
        database.clear_two_view_geometries()
    return path


def names_in(path: Path) -> list[str]:
    with pycolmap.Database.open(path) as database:
        return [image.name for image in database.read_all_images()]


def inliers_in(path: Path) -> dict[int, int]:
    with pycolmap.Database.open(path) as database:
        ids, counts = database.read_two_view_geometry_num_inliers()
        return dict(zip(ids, counts, strict=True))


def test_verification_agrees_with_that_of_colmap(
    synthetic: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs.db"
    shutil.copy(synthetic, theirs)
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    pycolmap.geometric_verification(theirs, two_view_geometry_options=options)
    verify_matches(synthetic, exhaustive_pairs(names_in(synthetic)), DatabaseConfig())
    ours, expected = inliers_in(synthetic), inliers_in(theirs)
    assert ours.keys() == expected.keys() and len(ours) == 36
    assert sum(ours.values()) > 36 * 100
    for pair, count in expected.items():
        assert ours[pair] == pytest.approx(count, abs=0.02 * count)


def test_verification_is_the_same_with_any_number_of_threads(
    synthetic: Path, tmp_path: Path
) -> None:
    pairs = exhaustive_pairs(names_in(synthetic))
    one = tmp_path / "one.db"
    shutil.copy(synthetic, one)
    verify_matches(one, pairs, DatabaseConfig(), num_threads=1)
    verify_matches(synthetic, pairs, DatabaseConfig(), num_threads=4)
    assert inliers_in(one) == inliers_in(synthetic)


def test_verification_goes_on_where_it_was(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = exhaustive_pairs(names_in(synthetic))
    verify_matches(synthetic, Pairs(pairs.items[:10]), DatabaseConfig())
    assert read_verified(synthetic).num_verified == 10
    estimate = pycolmap.estimate_two_view_geometry
    calls = []

    def counted(*args: object) -> object:
        calls.append(args)
        return estimate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(database_module.pycolmap, "estimate_two_view_geometry", counted)
    verify_matches(synthetic, pairs, DatabaseConfig())
    assert len(calls) == 26
    verify_matches(synthetic, pairs, DatabaseConfig())
    assert len(calls) == 26
    assert read_verified(synthetic).num_verified == 36


def test_stopped_verification_does_not_finish_what_waits(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate, calls, may_go_on = pycolmap.estimate_two_view_geometry, [], Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            may_go_on.set()
            super().shutdown(wait=wait)

    def estimated(*args: object) -> object:
        calls.append(args)
        if len(calls) > 1:
            may_go_on.wait()
        return estimate(*args)  # type: ignore[arg-type]

    def stop(items: Iterator[object], **options: object) -> Iterator[object]:
        yield next(items)
        raise KeyboardInterrupt

    monkeypatch.setattr("sfmprep.threads.ThreadPoolExecutor", Pool)
    monkeypatch.setattr(pycolmap, "estimate_two_view_geometry", estimated)
    pairs = exhaustive_pairs(names_in(synthetic))
    with pytest.raises(KeyboardInterrupt):
        verify_matches(synthetic, pairs, DatabaseConfig(), num_threads=1, progress=stop)
    assert len(calls) <= 2
    assert read_verified(synthetic).num_verified == 1


def test_pairs_with_few_inliers_are_not_verified(capture: Capture) -> None:
    path = capture.features.path.with_name("random.db")
    capture.write(path)
    verify_matches(path, capture.pairs, DatabaseConfig(min_num_inliers=45))
    verified = read_verified(path)
    assert (verified.num_pairs, verified.num_verified) == (6, 0)
    assert verified.images == frozenset()


def test_geometry_of_a_pair_does_not_depend_on_the_others(
    synthetic: Path, tmp_path: Path
) -> None:
    pairs = exhaustive_pairs(names_in(synthetic))
    alone = tmp_path / "alone.db"
    shutil.copy(synthetic, alone)
    verify_matches(synthetic, pairs, DatabaseConfig())
    pycolmap.set_random_seed(7)
    verify_matches(alone, Pairs(pairs.items[20:]), DatabaseConfig())
    verify_matches(alone, pairs, DatabaseConfig())
    assert content(alone) == content(synthetic)


def test_what_was_verified_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    kind = pycolmap.TwoViewGeometryConfiguration
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_name(0, "PINHOLE", 60, 64, 48)
        camera.camera_id = database.write_camera(camera)
        ids = add_images(database, [f"{k}.png" for k in range(6)], camera)
        for second, (num_matches, num_inliers, config) in enumerate(
            [
                (40, 30, kind.UNCALIBRATED),
                (40, 20, kind.PANORAMIC),
                (40, 17, kind.PLANAR_OR_PANORAMIC),
                (40, 0, kind.DEGENERATE),
            ],
            1,
        ):
            pair = ids["0.png"], ids[f"{second}.png"]
            rows = np.zeros((num_matches, 2), np.uint32)
            database.write_matches(*pair, rows)
            geometry = pycolmap.TwoViewGeometry()
            geometry.config, geometry.inlier_matches = config, rows[:num_inliers]
            database.write_two_view_geometry(*pair, geometry)

    assert read_verified(path) == VerifiedPairs(
        num_pairs=4,
        num_verified=3,
        num_inliers=67,
        num_rotation_only=2,
        images=frozenset({"0.png", "1.png", "2.png", "3.png"}),
    )
    assert count_inliers(path) == {
        ("0.png", "1.png"): 30,
        ("0.png", "2.png"): 20,
        ("0.png", "3.png"): 17,
    }


# ------------------------------------------------------------------ one photograph more
def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, byte for byte."""
    with closing(sqlite3.connect(path)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            table: sorted(database.execute(f"SELECT * FROM {table}"), key=repr)
            for (table,) in tables.fetchall()
            if table != "sqlite_sequence"
        }


class Views:
    """Photographs of one cloud of points, some of which are in the database yet."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.sizes = {name: (640, 480) for name in names}
        self.seeds = {name: k for k, name in enumerate(names)}
        self.camera_model: Any = "SIMPLE_RADIAL"

    def update(
        self, path: Path, *, without: str = "", pairs: Pairs | None = None
    ) -> int:
        """Updates and verifies; returns how many pairs kept their geometry."""
        names = [name for name in self.names if name != without]
        infos = {name: ImageInfo(self.sizes[name], 1, 1) for name in names}
        images = ImageSet(self.folder, tuple(names), infos, {})
        pairs = pairs or exhaustive_pairs(names)
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as stores,
            FeatureStore(Path(stores) / "features.h5", {}) as features,
            MatchStore(Path(stores) / "matches.h5", {}) as matches,
        ):
            features.append([(n, self.features(n)) for n in names])
            index = np.stack([np.arange(120, dtype=np.int32)] * 2, 1)
            index[90:, 1] = index[:89:-1, 1]  # a quarter is wrong
            found = Matches(index=index, scores=np.ones(len(index), np.float32))
            matches.append([(pair, found) for pair in exhaustive_pairs(names)])
            config = DatabaseConfig(camera_model=self.camera_model)
            kept = update_database(path, images, features, matches, pairs, config)
            verify_matches(path, pairs, config)
        return kept

    def features(self, name: str) -> Features:
        points = np.random.default_rng(0).uniform(-1, 1, (120, 3)) + (0, 0, 4)
        noise = np.random.default_rng(self.seeds[name])
        seen = points - noise.uniform(-0.5, 0.5, 3)
        xy = (
            500 * seen[:, :2] / seen[:, 2:]
            + (320, 240)
            + noise.normal(0, 0.3, (120, 2))
        )
        return features_at(xy, self.sizes[name])


@pytest.fixture
def views(tmp_path: Path) -> Views:
    # sorted, the one of the other size comes second, so that cameras alternate
    views = Views(tmp_path, [f"{k}.jpg" for k in range(6)])
    views.sizes["1.jpg"] = (600, 480)
    return views


@pytest.mark.parametrize("name", ["0.jpg", "1.jpg", "3.jpg", "5.jpg"])
def test_database_that_grew_is_the_one_made_at_once(
    name: str, views: Views, tmp_path: Path
) -> None:
    grown, fresh = tmp_path / "grown.db", tmp_path / "fresh.db"
    assert views.update(grown, without=name) == 0
    assert views.update(grown) == 10
    views.update(fresh)
    assert read_verified(fresh).num_verified == 15
    assert content(grown) == content(fresh)
    # nothing new: nothing is verified
    assert views.update(grown) == 15
    assert content(grown) == content(fresh)


def test_pairs_of_fisheye_lenses_are_verified_by_one_focal_length(
    views: Views, tmp_path: Path
) -> None:
    """It is searched anew in all matches, so that what was verified is not kept."""
    grown, fresh = tmp_path / "grown.db", tmp_path / "fresh.db"
    views.camera_model = "SIMPLE_RADIAL_FISHEYE"
    views.update(grown, without="5.jpg")
    assert views.update(grown) == 0
    views.update(fresh)
    assert content(grown) == content(fresh)


def test_photograph_that_is_gone_leaves_the_database(
    views: Views, tmp_path: Path
) -> None:
    shrunk, fresh = tmp_path / "shrunk.db", tmp_path / "fresh.db"
    views.update(shrunk)
    assert views.update(shrunk, without="3.jpg") == 10
    views.update(fresh, without="3.jpg")
    assert content(shrunk) == content(fresh)


def test_pairs_that_are_no_longer_wanted_leave_the_database(
    views: Views, tmp_path: Path
) -> None:
    path = tmp_path / "project.db"
    views.update(path)
    pairs = Pairs(exhaustive_pairs(views.names).items[4:9])
    assert views.update(path, pairs=pairs) == 5
    assert read_verified(path).num_pairs == 5
    assert views.update(path) == 5
    assert read_verified(path).num_verified == 15


@pytest.mark.parametrize("what", ["keypoints", "camera"])
def test_photograph_that_changed_is_verified_again(
    what: str, views: Views, tmp_path: Path
) -> None:
    path, fresh = tmp_path / "project.db", tmp_path / "fresh.db"
    views.update(path)
    if what == "keypoints":
        views.seeds["4.jpg"] = 99
    else:
        views.sizes["4.jpg"] = (640, 482)
    assert views.update(path) == 10
    views.update(fresh)
    assert content(path) == content(fresh)


def test_stopped_update_loses_nothing(
    views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "project.db"
    views.update(path, without="2.jpg")
    before = content(path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pycolmap.Database, "write_two_view_geometry", stop)
        with pytest.raises(KeyboardInterrupt):
            views.update(path)
    assert content(path) == before
    assert not list(tmp_path.glob(".*.part*"))
    with monkeypatch.context() as patched:  # imported, but nothing new verified
        patched.setattr("sfmprep.mapping.verify.pycolmap.TwoViewGeometryOptions", stop)
        with pytest.raises(KeyboardInterrupt):
            views.update(path)
    assert read_verified(path).num_pairs == 15
    assert views.update(path) == 10


# ----------------------------------------------------------------------------- cameras
@pytest.mark.parametrize(
    ("cameras", "expected"),
    [("auto", 2), ("single", 1), ("per-folder", 2), ("per-image", 4)],
)
def test_cameras_are_shared_as_asked(
    cameras: str, expected: int, tmp_path: Path
) -> None:
    names = ("a/0.png", "a/1.png", "b/0.png", "b/1.png")
    capture = Capture(tmp_path, dict.fromkeys(names, (64, 48)))
    config = DatabaseConfig.model_validate({"cameras": cameras})
    with capture.features, capture.matches:
        capture.write(tmp_path / "new.db", config)
    with pycolmap.Database.open(tmp_path / "new.db") as database:
        assert database.num_cameras() == database.num_rigs() == expected


def test_images_of_two_sizes_cannot_share_a_camera(tmp_path: Path) -> None:
    capture = Capture(tmp_path, {"a.png": (64, 48), "b.png": (48, 64)})
    with capture.features, capture.matches:
        capture.write(tmp_path / "auto.db")
        with pytest.raises(ConfigError) as caught:
            capture.write(tmp_path / "new.db", DatabaseConfig(cameras="single"))
    assert str(caught.value) == (
        "database.cameras: single lets a.png (64 x 48 pixels) and b.png (48 x 64) share"
        " a camera, but one camera has one size. Use `auto`."
    )
    assert not (tmp_path / "new.db").exists()


def scan_one(folder: Path, exif: dict[int, object]) -> ImageSet:
    """One black JPEG of 720 x 480 pixels."""
    folder.mkdir()
    tags = Image.Exif()
    tags.update({271: "Maker", 272: "Model"})
    tags.get_ifd(0x8769).update(exif)
    Image.new("RGB", (720, 480)).save(folder / "0.jpg", exif=tags)
    return ImageSet.scan(folder)


def test_focal_length_comes_from_exif(tmp_path: Path) -> None:
    # 36 x 24 mm have the shape of 720 x 480 pixels: 20 pixels a millimetre
    images = scan_one(tmp_path / "images", {0xA405: 50})
    camera = infer_camera(images, "0.jpg", DatabaseConfig())
    assert camera.mean_focal_length() == pytest.approx(1000)
    assert camera.has_prior_focal_length
    assert camera.params[1:3].tolist() == [360, 240]


def test_focal_length_is_guessed_without_exif(tmp_path: Path) -> None:
    images = scan_one(tmp_path / "images", {})
    camera = infer_camera(images, "0.jpg", DatabaseConfig())
    assert camera.mean_focal_length() == pytest.approx(1.2 * 720)
    assert not camera.has_prior_focal_length


def test_given_focal_length_overrules_exif(tmp_path: Path) -> None:
    images = scan_one(tmp_path / "images", {0xA405: 50})
    config = DatabaseConfig(focal_length=777, camera_model="OPENCV")
    camera = infer_camera(images, "0.jpg", config)
    assert camera.params.tolist() == [777, 777, 360, 240, 0, 0, 0, 0]
    assert camera.has_prior_focal_length


def write_two_images(folder: Path) -> Path:
    path = folder / "a.db"
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_name(0, "PINHOLE", 100, 90, 60)
        camera.camera_id = database.write_camera(camera)
        for image_id in add_images(database, ["a.jpg", "b.jpg"], camera).values():
            database.write_keypoints(image_id, np.ones((5, 2), np.float32))
    return path


def read_keypoints(path: Path) -> None:
    with open_database(path) as database:
        for image in database.read_all_images():
            database.read_keypoints(image.image_id)


@pytest.mark.parametrize("table", ["images", "keypoints"])
def test_a_damaged_page_of_a_database_is_told(table: str, tmp_path: Path) -> None:
    path = write_two_images(tmp_path)
    with closing(sqlite3.connect(path)) as tables:
        [[root]] = tables.execute(
            f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'"
        )
        [[size]] = tables.execute("PRAGMA page_size")
    content = bytearray(path.read_bytes())
    content[(root - 1) * size] ^= 0xFF  # the kind of the page
    path.write_bytes(content)
    with pytest.raises(StoreError) as refused:
        read_keypoints(path)
    assert str(path) in str(refused.value)
    assert "malformed" in str(refused.value)


def test_keypoints_of_another_length_are_damage(tmp_path: Path) -> None:
    path = write_two_images(tmp_path)
    with closing(sqlite3.connect(path)) as tables, tables:
        tables.execute("UPDATE keypoints SET rows = 7 WHERE image_id = 2")
    with pytest.raises(StoreError) as refused:
        read_keypoints(path)
    said = str(refused.value)
    assert said.startswith(f"{path} is damaged (")
    assert said.endswith(
        "). If sfmprep made it, delete it, and the next run makes it again; else put"
        " back a copy of it."
    )


def test_what_is_said_of_damage_may_be_no_text(tmp_path: Path) -> None:
    path = write_two_images(tmp_path)
    content = path.read_bytes()
    content = content.replace(b"tableimagesimages", b"table\xffmagesimages")
    path.write_bytes(content.replace(b"CREATE TABLE images", b"CREAT! TABLE images"))
    with pytest.raises(StoreError) as refused:
        read_keypoints(path)
    assert str(refused.value).startswith(f"{path} cannot be opened as a database (")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x'fffe41'", "the name of image 1 is no text"),
        ("x''", "the name of image 1 is no text"),
        (
            "CAST(x'fffe41' AS TEXT)",
            "Could not decode to UTF-8 column 'name' with text '��A'",
        ),
    ],
)
def test_names_of_images_that_are_no_text_are_damage(
    name: str, why: str, tmp_path: Path
) -> None:
    path = write_two_images(tmp_path)
    with closing(sqlite3.connect(path)) as tables, tables:
        tables.execute(f"UPDATE images SET name = {name} WHERE image_id = 1")
    for read in (read_keypoints, lambda path: read_pair_table(path, ("b.jpg",))):
        with pytest.raises(StoreError) as refused:
            read(path)
        assert str(refused.value) == (
            f"{path} cannot be opened as a database ({why}). Close COLMAP if it has it"
            " open; give the path of a COLMAP database."
        )
