"""Existing COLMAP projects: filled in place, with what is said about it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.cli.commands import run
from sfmprep.mapping.verify import read_verified
from sfmprep.stores.tables import FeatureStore

pytestmark = pytest.mark.usefixtures("remembered")
RECIPE = ("--recipe", "sift")
SETTINGS = (
    *("--set", "features.max_size=320", "features.max_keypoints=1500"),
    "mapping.type=none",
)


def names_in(path: Path) -> list[str]:
    with pycolmap.Database.open(path) as database:
        return [image.name for image in database.read_all_images()]


# ------------------------------------------------------------- a project made by COLMAP
@pytest.fixture(scope="module")
def made_by_colmap(demo_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`, in sub-folders, and COLMAP's `project.db` of them."""
    folder = tmp_path_factory.mktemp("project")
    for k, path in enumerate(sorted((demo_scene / "images").iterdir())):
        target = folder / "images" / ("left", "right side")[k % 2] / f"view {k}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    options = pycolmap.ImageReaderOptions()
    options.camera_model = "OPENCV"
    options.camera_params = "400,401,240,180,0,0,0,0"
    database, images = folder / "project.db", folder / "images"
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    pycolmap.extract_features(
        database,
        images,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=options,
        extraction_options=pycolmap.FeatureExtractionOptions(
            use_gpu=False, sift=pycolmap.SiftExtractionOptions(max_num_features=300)
        ),
    )
    pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
    pycolmap.logging.minloglevel = level
    return folder


@pytest.fixture
def project(made_by_colmap: Path, tmp_path: Path) -> Path:
    """A copy of the project."""
    return Path(shutil.copytree(made_by_colmap, tmp_path / "project"))


def fill(project: Path, *more: str) -> int:
    database = ["--database", str(project / "project.db")]
    return run(
        ["database", str(project / "images"), *database, *RECIPE, *SETTINGS, *more]
    )


def identities(path: Path) -> tuple[object, ...]:
    """What must stay in a user's database."""
    with pycolmap.Database.open(path) as database:
        images = sorted(
            (i.image_id, i.name, i.camera_id, i.frame_id)
            for i in database.read_all_images()
        )
        cameras = [
            (c.camera_id, c.model, c.width, c.height, c.params.tolist())
            for c in database.read_all_cameras()
        ]
        return images, cameras, database.num_rigs(), database.num_frames()


def test_project_keeps_ids_names_and_cameras(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "project.db"
    before = identities(path)
    with pycolmap.Database.open(path) as database:
        assert database.num_descriptors() > 0
        num_keypoints = database.num_keypoints()
        num_matched = database.num_matched_image_pairs()
        num_verified = np.count_nonzero(
            database.read_two_view_geometry_num_inliers()[1]
        )
    was = shutil.copy(path, project / "was.db")
    assert fill(project) == 0
    printed = capsys.readouterr().out.replace(str(project), "TMP").splitlines()
    assert identities(path) == before
    verified = read_verified(path)
    assert verified.num_verified > 15
    with pycolmap.Database.open(path) as database:
        assert database.num_descriptors() == 0
        assert database.num_keypoints() > num_keypoints
        assert printed == [
            "kept:     8 images, with their ids and cameras",
            f"replaced: {num_keypoints} keypoints by {database.num_keypoints()}",
            f"dropped:  {num_keypoints} descriptors, matches of {num_matched} pairs,"
            f" two-view geometries of {num_verified}",
            "backup:   TMP/project.db.backup",
            f"{verified.num_verified} of {verified.num_pairs} pairs verified,"
            f" {verified.num_inliers} inliers, in TMP/project.db",
            "next:     mkdir -p TMP/sparse && colmap mapper --database_path"
            " TMP/project.db --image_path TMP/images --output_path TMP/sparse",
        ]
        with FeatureStore(project / "project.sfmprep/work/features.h5") as features:
            for image in database.read_all_images():
                rows = database.read_keypoints(image.image_id)
                np.testing.assert_array_equal(rows[:, :2], features.get(image.name).xy)

    (project / "model").mkdir()
    models = pycolmap.incremental_mapping(path, project / "images", project / "model")
    assert models[0].num_reg_images() == 8

    # once more changes nothing, and no copy of what it was is lost
    assert fill(project) == 0
    assert identities(path) == before
    assert read_verified(path) == verified
    assert capsys.readouterr().out.splitlines()[2:4] == [
        f"dropped:  0 descriptors, matches of {verified.num_pairs} pairs, two-view"
        f" geometries of {verified.num_verified}",
        f"backup:   {path}.backup2",
    ]
    assert dump(Path(f"{path}.backup")) == dump(was)
    assert read_verified(Path(f"{path}.backup2")) == verified


def test_images_that_the_project_lacks_are_added(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = project / "images"
    # the same pixels in another file: equal files count once
    (images / "new.jpg").write_bytes((images / "left/view 0.jpg").read_bytes() + b"\0")
    shutil.move(images / "left/view 0.jpg", images / "left/view 8.jpg")
    before = identities(project / "project.db")
    assert fill(project) == 0
    # one is in a folder that the project's camera took, one in a folder of its own
    assert [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("kept", "idle", "added"))
    ] == [
        "kept:     7 images, with their ids and cameras",
        "idle:     1 images such as left/view 0.jpg, without keypoints now",
        "added:    1 images with camera 1 (OPENCV, 480 x 360, focal length 400.5, as"
        " known)",
        "added:    1 images with the new camera 2 (SIMPLE_RADIAL, 480 x 360, focal"
        " length 576.0, a guess)",
    ]
    after = identities(project / "project.db")
    assert after[0][:8] == before[0]  # type: ignore[index]
    assert after[1][:1] == before[1]  # type: ignore[index]
    with pycolmap.Database.open(project / "project.db") as database:
        images_now = {image.name: image for image in database.read_all_images()}
        assert len(images_now) == database.num_frames() == 10
        assert images_now["left/view 8.jpg"].camera_id == 1
        assert images_now["new.jpg"].camera_id == 2


# the tables of COLMAP 3.6, from before rigs and frames
OLD_TABLES = """
CREATE TABLE cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    model INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    params BLOB, prior_focal_length INTEGER NOT NULL);
CREATE TABLE images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name TEXT NOT NULL UNIQUE, camera_id INTEGER NOT NULL,
    prior_qw REAL, prior_qx REAL, prior_qy REAL, prior_qz REAL,
    prior_tx REAL, prior_ty REAL, prior_tz REAL,
    CONSTRAINT image_id_check CHECK(image_id >= 0 and image_id < 2147483647),
    FOREIGN KEY(camera_id) REFERENCES cameras(camera_id));
CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB,
    FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE);
CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB,
    FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE);
CREATE TABLE matches (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB);
CREATE TABLE two_view_geometries (pair_id INTEGER PRIMARY KEY NOT NULL,
    rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB, config INTEGER NOT NULL,
    F BLOB, E BLOB, H BLOB);
CREATE UNIQUE INDEX index_name ON images(name);
PRAGMA user_version = 3600;
"""


def test_database_of_an_older_colmap_with_some_of_the_images_can_be_mapped(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(p.name for p in (demo_scene / "images").iterdir())[:6]
    (tmp_path / "images").mkdir()
    for name in names:
        shutil.copy(demo_scene / "images" / name, tmp_path / "images")
    path = tmp_path / "project.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(OLD_TABLES)
        params = np.array([400.0, 240, 180, 0]).tobytes()
        old.execute("INSERT INTO cameras VALUES (7, 2, 480, 360, ?, 1)", [params])
        for image_id, name in ((5, names[4]), (6, names[0]), (9, names[2])):
            row = (image_id, name, 7)
            old.execute(
                "INSERT INTO images (image_id, name, camera_id) VALUES (?, ?, ?)", row
            )
            xy = np.ones((2, 2), np.float32).tobytes()
            old.execute("INSERT INTO keypoints VALUES (?, 2, 2, ?)", (image_id, xy))
            bits = np.ones((2, 128), np.uint8).tobytes()
            old.execute(
                "INSERT INTO descriptors VALUES (?, 2, 128, ?)", (image_id, bits)
            )
        old.commit()
    was = dump(path)

    assert fill(tmp_path) == 0

    printed = capsys.readouterr().out.replace(str(tmp_path), "TMP").splitlines()
    assert printed[0] == "kept:     3 images, with their ids and cameras"
    assert printed[2:5] == [
        "dropped:  6 descriptors, matches of 0 pairs, two-view geometries of 0",
        "added:    3 images with camera 7 (SIMPLE_RADIAL, 480 x 360, focal length"
        " 400.0, as known)",
        "backup:   TMP/project.db.backup",
    ]
    assert dump(Path(f"{path}.backup")) == was
    with pycolmap.Database.open(path) as database:
        there = {image.name: image for image in database.read_all_images()}
        assert [there[names[k]].image_id for k in (4, 0, 2)] == [5, 6, 9]
        assert {image.camera_id for image in there.values()} == {7}
        assert database.num_rigs() == 1
        frames = [
            database.read_frame(image.frame_id).image_ids for image in there.values()
        ]
    models = pycolmap.incremental_mapping(path, tmp_path / "images", tmp_path)
    assert models[0].num_reg_images() == len(frames) == 6


def dump(path: Path) -> tuple[int, list[str]]:
    """The version and the whole content of a database."""
    with closing(sqlite3.connect(path)) as database:
        [[version]] = database.execute("PRAGMA user_version")
        return version, list(database.iterdump())


def test_images_of_the_project_that_are_gone_are_reported(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "images/left/view 0.jpg").unlink()
    assert fill(project) == 0
    assert (
        "warning: 1 images of the database, such as left/view 0.jpg, get no matches:"
        f" {project}/images has no such image, or it cannot be read\n"
    ) in capsys.readouterr().err
    assert len(names_in(project / "project.db")) == 8


def message_of(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    error = capsys.readouterr().err.replace(str(folder), "TMP")
    assert "Traceback" not in error
    return error.partition("sfmprep: error: ")[2]


def test_folder_with_other_sizes_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = identities(project / "project.db")
    for path in (project / "images").rglob("*.jpg"):
        with Image.open(path) as image:
            image.resize((240, 180)).save(path)
    assert fill(project) == 2
    message = message_of(capsys, project)
    assert message.endswith(
        ".jpg has 240 x 180 pixels but 480 x 360 in TMP/project.db. Give the folder of"
        " images that the database was made from.\n"
    )
    assert not (project / "project.sfmprep/work/features.h5").exists()
    assert identities(project / "project.db") == before


def test_folder_with_other_names_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = identities(project / "project.db")
    database = ["--database", str(project / "project.db")]
    assert run(["database", str(project / "images/left"), *database, *SETTINGS]) == 2
    assert message_of(capsys, project) == (
        "TMP/project.db holds 8 images such as 'left/view 0.jpg', but"
        " TMP/images/left none of them; its images are called such as 'view 0.jpg'."
        " Give the folder of images that the database was made from.\n"
    )
    assert identities(project / "project.db") == before


def test_database_that_does_not_exist_is_made_only_if_asked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "project.db"
    path.unlink()
    there = sorted(project.rglob("*"))
    assert fill(project) == 2
    assert message_of(capsys, project) == (
        "TMP/project.db does not exist. Correct the path, or add --create to make a new"
        " database there.\n"
    )
    assert sorted(project.rglob("*")) == there

    assert fill(project, "--create") == 0
    printed = capsys.readouterr().out.replace(str(project), "TMP").splitlines()
    assert len(names_in(path)) == 8
    verified = read_verified(path)
    assert verified.num_verified > 15
    guess = "(SIMPLE_RADIAL, 480 x 360, focal length 576.0, a guess)"
    assert printed[:-1] == [
        f"added:    4 images with the new camera 1 {guess}",
        f"added:    4 images with the new camera 2 {guess}",
        f"{verified.num_verified} of {verified.num_pairs} pairs verified,"
        f" {verified.num_inliers} inliers, in TMP/project.db",
    ]
    assert not list(project.glob("*.backup"))


def test_stopped_filling_leaves_the_project_as_it_was(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "project.db"
    before = dump(path)

    def stop(*_: object) -> None:
        raise RuntimeError("SQLite error: disk I/O error")

    monkeypatch.setattr(pycolmap.Database, "write_matches", stop)
    assert fill(project) == 1
    assert dump(path) == before
    assert not list(project.glob("*.backup")) + list(project.glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_project_that_is_read_only(
    what: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "project.db"
    locked = path if what == "file" else project
    mode = locked.stat().st_mode
    locked.chmod(mode & 0o555)
    assert fill(project) == 1
    locked.chmod(mode)
    expected = {
        "file": "TMP/project.db is read-only. Change its permissions, or copy it to"
        " another place.\n",
        "folder": "TMP/project.db: you may not write to the folder TMP, but the"
        " database and a copy of what it was go there. Change its permissions, or copy"
        " the database to another folder.\n",
    }
    assert message_of(capsys, project) == expected[what]


def test_text_file_is_no_database(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "project.db").write_text("precious notes" * 100)
    assert fill(project) == 1
    assert message_of(capsys, project) == (
        "TMP/project.db cannot be opened as a database (file is not a database). Close"
        " COLMAP if it has it open; give the path of a COLMAP database.\n"
    )
    assert (project / "project.db").read_text() == "precious notes" * 100


def test_database_of_something_else(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "project.db").unlink()
    with closing(sqlite3.connect(project / "project.db")) as other:
        other.execute("CREATE TABLE songs (title TEXT)")
        other.commit()
    assert fill(project) == 1
    assert message_of(capsys, project) == (
        "TMP/project.db is a database, but not one of COLMAP (its tables: songs). Give"
        " the path of a COLMAP database.\n"
    )


def test_locked_database(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(project / "project.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert fill(project) == 1
    assert message_of(capsys, project) == (
        "TMP/project.db cannot be opened as a database (database is locked). Close"
        " COLMAP if it has it open; give the path of a COLMAP database.\n"
    )


def test_database_with_no_room_beside_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "project.db-wal").mkdir()  # as on a full disk, SQLite cannot make it
    assert fill(project) == 1
    assert message_of(capsys, project) == (
        "TMP/project.db cannot be opened as a database (unable to open database file)."
        " Free some disk space, or see whether its folder can be written.\n"
    )


def test_database_in_a_folder_that_does_not_exist(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--database", str(project / "no" / "p.db"), *SETTINGS]
    images, out = str(project / "images"), str(project / "out")
    assert run(["database", images, out, *arguments]) == 1
    assert message_of(capsys, project) == (
        "TMP/no/p.db: the folder TMP/no does not exist. Make it, or correct the path.\n"
    )


def test_database_command_needs_a_place(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["database", str(project / "images")]) == 2
    assert message_of(capsys, project) == (
        "`sfmprep database` needs OUT, or --database PROJECT.db.\n"
    )
