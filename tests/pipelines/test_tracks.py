"""Points followed by optical flow, in the stores and the database of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DisConfig, FlowConfig
from sfmprep.config.load import load_recipe
from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.demo.raycast import look_at, render_image
from sfmprep.demo.textures import to_texture
from sfmprep.errors import ImageError, ReconstructionError, StoreError, WeightsError
from sfmprep.known_poses.poses import KnownPoses
from sfmprep.known_poses.read import read_poses
from sfmprep.mapping import dense_odometry
from sfmprep.mapping.odometry import Odometry
from sfmprep.mapping.verify import count_inliers
from sfmprep.models.build import build_flow_estimator
from sfmprep.models.flow.dis import Dis
from sfmprep.models.flow.droid import Droid, DroidImage
from sfmprep.models.flow.droid_network import DroidNetwork
from sfmprep.pairing.pairs import pairs_from_file
from sfmprep.pipelines import artefacts, matching, stages, tracks
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.run import Run, open_run
from sfmprep.stores.tables import FeatureStore, MatchStore
from tests.support.films import Walk, write_film

SETTINGS = (
    "features.max_keypoints=100",
    "pairs={type: auto, exhaustive_up_to: 0, retrieval: {num_neighbours: 2}}",
    "tracks={max_points: 150}",
    "mapping.type=none",
)
DIS = Dis(DisConfig())


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Six frames; the names are in order only as people count."""
    walk = Walk(size=(240, 180))
    (tmp_path / "frames").mkdir()
    for k in range(6):
        cv2.imwrite(str(tmp_path / "frames" / f"{k + 7}.png"), walk.at(3 * k))
    return ImageSet.scan(tmp_path / "frames")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[FlowConfig]:
    """The estimators that were made."""
    made: list[FlowConfig] = []

    def build(config: FlowConfig, **how: object) -> object:
        made.append(config)
        return build_flow_estimator(config)

    monkeypatch.setattr(tracks, "build_flow_estimator", build)
    return made


def fill(run: Run) -> None:
    with matching.match_photographs(run, {}) as found:
        stages.fill_database(run, found.features, found.pairs, found.matches)


def test_points_come_behind_the_features_in_stores_and_database(
    images: ImageSet, tmp_path: Path, built: list[FlowConfig]
) -> None:
    with open_run(images, tmp_path / "out", load_recipe("sift", SETTINGS)) as run:
        fill(run)
        place, pair = run.workspace, ("10.png", "9.png")
        with (
            FeatureStore(place.features) as first,
            FeatureStore(place.tracks) as second,
            MatchStore(place.matches) as own,
            MatchStore(place.track_matches) as followed,
        ):
            keypoints, matches = artefacts.open_joined(run)
            with keypoints, matches:
                starts = [len(first.get(name)) for name in pair]
                joined = keypoints.get(pair[0])
                assert (joined.xy[: starts[0]] == first.get(pair[0]).xy).all()
                assert (joined.xy[starts[0] :] == second.get(pair[0]).xy).all()
                moved = followed.get(*pair).index + starts
                assert len(moved) > 50
                found = matches.get(*pair).index
                assert (found[: len(moved)] == moved).all()
                assert (found[len(moved) :] == own.get(*pair).index).all()
        with pycolmap.Database.open(run.ledger.file("database")) as database:
            image = database.read_image_with_name(pair[0])
            assert len(database.read_keypoints(image.image_id)) == len(joined)
        inliers = count_inliers(run.ledger.file("database"))
        assert len(inliers) >= 10
        assert set(inliers) <= set(pairs_from_file(place.pairs, images.names))
        assert inliers[pair] > 100
    assert len(built) == 1


def test_only_what_changed_is_followed_again(
    images: ImageSet, tmp_path: Path, built: list[FlowConfig]
) -> None:
    out = tmp_path / "out"
    for settings, count in (
        (SETTINGS, 1),
        (SETTINGS, 1),
        ((*SETTINGS, "database.max_error_px=2"), 1),
        ((*SETTINGS, "tracks.max_points=100"), 2),
    ):
        with open_run(images, out, load_recipe("sift", settings)) as run:
            fill(run)
            assert run.ledger.is_done("database")
        assert len(built) == count
    shutil.copy(tmp_path / "frames" / "12.png", tmp_path / "frames" / "13.png")
    recipe = load_recipe("sift", (*SETTINGS, "tracks.max_points=100"))
    with open_run(ImageSet.scan(tmp_path / "frames"), out, recipe) as run:
        with pytest.raises(StoreError) as caught:
            artefacts.open_joined(run)
        fill(run)
        with FeatureStore(run.workspace.tracks) as store:
            assert store.names()[-1] == "13.png"
    assert len(built) == 3
    assert str(caught.value) == (
        f"{out}/work/features.h5 is out of date (photographs or masks changed). Run"
        " `sfmprep extract` first."
    )


@pytest.mark.parametrize("start", [True, False])
def test_mapping_begins_with_the_poses_of_one_whole_film(
    images: ImageSet, tmp_path: Path, start: bool
) -> None:
    settings = (*SETTINGS, f"tracks.start={str(start).lower()}")
    with open_run(images, tmp_path / "out", load_recipe("sift", settings)) as run:
        fill(run)
        poses = tracks.film_poses(run)
        assert (poses == run.workspace.film_poses) is start
        read = read_poses(
            run.workspace.film_poses, axes="opencv", direction="world_from_cam"
        )
    assert isinstance(read, KnownPoses)
    assert read.names == tuple(f"{k + 7}.png" for k in range(6))
    rotations, centres = read.cam_from_world()
    # sideways, and hardly turned
    assert Rotation.from_matrix(rotations).magnitude().max() < np.radians(3)
    steps = np.diff(centres, axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    assert (steps[:, 0] > 0.9).all()


@pytest.mark.parametrize(
    ("deviation", "exif", "expected"),
    [(0.001, 0, 300.0), (0.003, 0, None), (0, 35, None)],
)
def test_mapping_takes_over_a_focal_length_that_is_sure(
    images: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deviation: float,
    exif: int,
    expected: float | None,
) -> None:
    push = Odometry.push

    def pushed(way: Odometry, *seen: object) -> np.ndarray:
        fits = push(way, *seen)
        way.focal_deviation, way._window = deviation, replace(way._window, focal=300.0)
        return fits

    monkeypatch.setattr(Odometry, "push", pushed)
    if exif:
        told = {n: replace(i, focal_length_35mm=exif) for n, i in images.infos.items()}
        images = replace(images, infos=told)
    with open_run(images, tmp_path / "out", load_recipe("sift", SETTINGS)) as run:
        fill(run)
        found = tracks.film_focal_lengths(run)
    assert found == ({} if expected is None else {"7.png": expected})
    with open_run(images, tmp_path / "other", load_recipe("sift")) as run:
        assert tracks.film_focal_lengths(run) == {}


@pytest.mark.parametrize("count", [6, 9])
def test_with_droid_mapping_begins_with_the_poses_of_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """From eight frames on, and with the focal length that the points tell."""
    walk, pushed = Walk(size=(240, 180)), []
    (tmp_path / "frames").mkdir()
    for k in range(count):
        cv2.imwrite(str(tmp_path / "frames" / f"{k + 7}.png"), walk.at(3 * k))
    weights = tmp_path / "droid.safetensors"
    save_file(DroidNetwork().state_dict(), weights)

    class Window:
        def __init__(self, droid: Droid, focal: float) -> None:
            pushed.append(focal)

        def push(self, image: DroidImage) -> None:
            assert image.size == (120, 90)
            pushed.append(image)

        @property
        def cam_from_world(self) -> tuple[np.ndarray, np.ndarray]:
            shifts = -np.arange(count)[:, None] * np.array([0.0, 1, 0])
            return np.tile(np.eye(3), (count, 1, 1)), shifts

    monkeypatch.setattr(dense_odometry, "DenseOdometry", Window)
    monkeypatch.setattr(tracks, "build_flow_estimator", lambda *_, **__: DIS)
    flow = f"{{type: droid, weights: {weights}}}"
    given = f"tracks={{max_points: 150, start: true, max_size: 120, flow: {flow}}}"
    recipe = load_recipe("sift", (*SETTINGS, given, "database.focal_length=200"))
    capture = ImageSet.scan(tmp_path / "frames")
    without = (*SETTINGS, given, "database.focal_length=200", "tracks.start=false")
    with open_run(capture, tmp_path / "out", load_recipe("sift", without)) as run:
        fill(run)
        assert not pushed and tracks.film_poses(run) is None
    with open_run(capture, tmp_path / "out", recipe) as run:
        fill(run)
        read = read_poses(
            tracks.film_poses(run), axes="opencv", direction="world_from_cam"
        )
    assert isinstance(read, KnownPoses)
    _, centres = read.cam_from_world()
    along = np.abs(np.diff(centres, axis=0)).argmax(axis=1)
    if count < 8:
        assert not pushed and (along == 0).all()
    else:
        assert pushed[0] == 100 and len(pushed) == 10 and (along == 1).all()


@pytest.mark.parametrize("place", ["", "other"])
def test_a_cut_or_a_second_film_leaves_no_common_start(
    images: ImageSet, tmp_path: Path, place: str
) -> None:
    second, folder = Walk(9, size=(240, 180)), tmp_path / "frames" / place
    folder.mkdir(exist_ok=True)
    for k in range(3):
        cv2.imwrite(str(folder / f"{k + 13}.png"), second.at(900 + 3 * k))
    capture = ImageSet.scan(tmp_path / "frames")
    recipe = load_recipe("sift", (*SETTINGS, "tracks.start=true"))
    with open_run(capture, tmp_path / "out", recipe) as run:
        fill(run)
        assert tracks.film_poses(run) is None


def test_weights_that_lack_are_told_before_work(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFMPREP_OFFLINE", "1")
    monkeypatch.setenv("SFMPREP_WEIGHTS", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    recipe = load_recipe("sift", (*SETTINGS, "tracks.flow={type: raft}"))
    with (
        pytest.raises(WeightsError, match="raft-small"),
        open_run(images, tmp_path / "out", recipe),
    ):
        pass


def test_a_film_in_which_nothing_moves_is_refused(tmp_path: Path) -> None:
    film = write_film(tmp_path / "still.mp4", [Walk().at(0)] * 20)
    with pytest.raises(ImageError) as caught:
        reconstruct(film, tmp_path / "out", load_recipe("sift", SETTINGS))
    assert str(caught.value).endswith(
        "holds one image that can be used, still/00h00m00s000.jpg; poses need at least"
        " two. Take twenty or more, a step apart."
    )


@pytest.mark.slow
def test_a_camera_that_only_turns_gives_no_depth(tmp_path: Path) -> None:
    size = (320, 240)
    surfaces, sky = build_courtyard(0)
    first = camera_walk(2, size, 0)[0]
    centre = -first.rotation.T @ first.translation
    (tmp_path / "frames").mkdir()
    for k, angle in enumerate(np.radians(np.linspace(-10, 10, 5))):
        cos, sin = np.cos(angle), np.sin(angle)
        about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        camera = look_at(centre, centre + about_z @ first.rotation[2], size)
        image = render_image(surfaces, camera, sky)
        cv2.imwrite(str(tmp_path / "frames" / f"{k}.png"), to_texture(image))
    settings = [*SETTINGS[:3], "second_round=null"]
    with pytest.raises(ReconstructionError) as caught:
        reconstruct(
            tmp_path / "frames", tmp_path / "out", load_recipe("sift", settings)
        )
    assert str(caught.value) == (
        f"10 of 10 verified pairs of {tmp_path}/frames are explained without any depth:"
        " the camera only turned, or it saw one plane, or the images are copies of each"
        " other. Walk sideways between photographs."
    )
