"""Given poses: against pairs, fitted to them, and models that start from them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.errors import ConfigError, StoreError
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import CameraPose
from sfmprep.known_poses.poses import Convention, KnownPoses
from sfmprep.known_poses.trajectory import Trajectory
from sfmprep.mapping.alignment import align
from sfmprep.mapping.check_poses import check_poses, find_time_offset
from sfmprep.mapping.from_poses import PoseChanges, map_from_poses
from sfmprep.mapping.pose_graph import Edges, edge_errors_deg, fit_poses
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.near_views import near_partners
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.types import Float64
from tests.support.orbit import lens, orbit

OPENCV = Convention("opencv", "cam_from_world")


class Scene(NamedTuple):
    """True poses, and relative ones that are a little off."""

    rotations: Float64
    centres: Float64
    edges: Edges


def scene(count: int = 12, *, noise_deg: float = 0.3, wrong: float = 0.1) -> Scene:
    rng = np.random.default_rng(0)
    rotations = Rotation.random(count, rng=rng).as_matrix()
    centres = rng.normal(0, 1, (count, 3))
    index = np.array([(a, b) for a in range(count) for b in range(a + 1, count)])
    first, second = index.T
    relative = rotations[second] @ rotations[first].swapaxes(1, 2)
    towards = centres[first] - centres[second]
    directions = np.einsum("eij,ej->ei", rotations[second], towards)
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    noise = rng.normal(0, np.radians(noise_deg), (2, len(index), 3))
    bad = rng.permutation(len(index))[: int(wrong * len(index))]
    noise[:, bad] = rng.normal(0, 1, (2, len(bad), 3))
    relative = Rotation.from_rotvec(noise[0]).as_matrix() @ relative
    turned = Rotation.from_rotvec(noise[1]).as_matrix() @ directions[:, :, None]
    edges = Edges(index=index, rotations=relative, directions=turned[:, :, 0])
    return Scene(rotations, centres, edges)


def disturbed(given: Scene, degrees: float, share: float) -> tuple[Float64, Float64]:
    rng = np.random.default_rng(1)
    count = len(given.centres)
    turn = Rotation.from_rotvec(rng.normal(0, np.radians(degrees), (count, 3)))
    moved = given.centres + rng.normal(0, share, (count, 3))
    return turn.as_matrix() @ given.rotations, moved


def known(
    rotations: Float64,
    centres: Float64,
    *,
    convention: Convention = OPENCV,
    is_told: bool = True,
) -> KnownPoses:
    """Poses written down in a convention."""
    if convention.axes == "opengl":
        rotations = np.diag([1.0, -1, -1]) @ rotations
    vectors = -np.einsum("nij,nj->ni", rotations, centres)
    if convention.direction == "world_from_cam":
        rotations, vectors = rotations.swapaxes(1, 2), centres
    return KnownPoses(
        names=tuple(f"{k:02}.jpg" for k in range(len(centres))),
        rotations=rotations,
        vectors=vectors,
        convention=convention,
        is_told=is_told,
        source="a table",
    )


# ------------------------------------------------------------------------- pose graph
@pytest.mark.parametrize(("degrees", "share"), [(1, 0.02), (5, 0.1), (15, 0.3)])
def test_poses_that_are_off_are_fitted_to_pairs(degrees: float, share: float) -> None:
    truth = scene()
    start = disturbed(truth, degrees, share)
    fitted = fit_poses(truth.edges, *start)
    before, after = (
        np.median(edge_errors_deg(truth.edges, *poses), axis=0)
        for poses in (start, fitted)
    )
    assert before.max() > degrees
    assert after.max() < 1


def test_exact_poses_stay_where_they_are() -> None:
    truth = scene()
    rotations, centres = fit_poses(truth.edges, truth.rotations, truth.centres)
    turned = Rotation.from_matrix(rotations @ truth.rotations.swapaxes(1, 2))
    assert np.degrees(turned.magnitude()).max() < 0.1
    assert np.linalg.norm(centres - truth.centres, axis=1).max() < 0.01


def test_without_pairs_poses_stay_as_they_are() -> None:
    truth = scene()
    fitted = fit_poses(truth.edges.of({}), truth.rotations, truth.centres)
    np.testing.assert_array_equal(fitted[0], truth.rotations)
    np.testing.assert_array_equal(fitted[1], truth.centres)


# --------------------------------------------------------------------------- checking
@pytest.mark.parametrize("axes", ["opencv", "opengl"])
@pytest.mark.parametrize("direction", ["cam_from_world", "world_from_cam"])
def test_conventions_are_told_by_pairs(axes: str, direction: str) -> None:
    truth, convention = scene(), Convention(axes, direction)
    poses = known(*disturbed(truth, 5, 0.1), convention=convention, is_told=False)
    found = check_poses(poses, truth.edges, "f").poses
    assert found.convention == convention


def error_of(poses: KnownPoses, edges: Edges) -> str:
    with pytest.raises(ConfigError) as caught:
        check_poses(poses, edges, "FILE")
    return str(caught.value)


def test_told_convention_that_contradicts_the_photographs() -> None:
    truth = scene(noise_deg=0.2)
    meant = Convention("opengl", "cam_from_world")
    poses = known(truth.rotations, truth.centres, convention=meant)
    wrong = poses.read_as("opencv", "cam_from_world")
    assert error_of(wrong, truth.edges) == (
        "poses FILE: read as cam_from_world with the axes of OpenCV, they contradict"
        " the photographs by 147 degrees (median over 66 pairs); read as cam_from_world"
        " with the axes of OpenGL, by 0.4. Give --axes opengl --direction"
        " cam_from_world."
    )


@pytest.mark.parametrize("is_told", [True, False])
def test_left_handed_worlds(is_told: bool) -> None:
    truth = scene(noise_deg=0.2)
    mirror = np.diag([1.0, -1, 1])
    unity = mirror @ truth.rotations @ mirror, truth.centres @ mirror
    half = truth.rotations, truth.centres * [1, 1, -1]
    for poses in (unity, half):
        message = error_of(known(*poses, is_told=is_told), truth.edges)
        assert message.endswith(
            " degrees, but their mirror image by 0.4: they are of a left-handed world,"
            " such as that of Unity. Negate one axis of positions and rotations."
        )


def test_poses_of_other_images() -> None:
    truth, other = scene(), np.random.default_rng(7)
    poses = known(
        Rotation.random(12, rng=other).as_matrix(), other.normal(0, 1, (12, 3))
    )
    assert error_of(poses, truth.edges) == (
        "poses FILE: they contradict the photographs by 144 degrees (median over 66"
        " pairs), no less than in another order. Are they of other images, or is the"
        " order of names another one?"
    )


def test_convention_that_nothing_tells() -> None:
    truth = scene()
    poses = known(truth.rotations, truth.centres, is_told=False)
    assert error_of(poses, truth.edges.of({})) == (
        "poses FILE: no pair of images was verified, by which to tell what they mean."
        " Tell it: --axes opencv or opengl, and --direction cam_from_world or"
        " world_from_cam."
    )
    told = check_poses(
        poses.read_as("opencv", "cam_from_world"), truth.edges.of({}), ""
    )
    assert np.isnan(told.error_deg)


def test_time_offset_is_found() -> None:
    """Of a camera that turns and moves evenly, in a convention that is not told."""
    times = np.arange(0, 4, 0.05)
    turn = Rotation.from_rotvec(np.outer(times, [0.2, 0.5, 0.1]) + [0, 0, 1])
    centres = np.stack([np.cos(times), np.sin(2 * times), times], axis=1)
    moving = Trajectory(
        times=times,
        rotations=turn.as_matrix(),
        vectors=centres,
        convention=Convention("opencv", "world_from_cam"),
        is_told=False,
        path=Path("t.txt"),
    )
    stamps = np.arange(1, 3, 0.2)
    names = [str(stamp) for stamp in stamps]
    rotations, places = moving.at(names, stamps, 0.031).cam_from_world()
    count = len(stamps)
    index = np.array([(a, b) for a in range(count) for b in range(a + 1, count)])
    first, second = index.T
    towards = np.einsum("eij,ej->ei", rotations[second], places[first] - places[second])
    edges = Edges(
        index=index,
        rotations=rotations[second] @ rotations[first].swapaxes(1, 2),
        directions=towards / np.linalg.norm(towards, axis=1)[:, None],
    )
    found = find_time_offset(moving, names, stamps, edges)
    assert found == pytest.approx(0.031, abs=1e-3)
    assert find_time_offset(moving, names, stamps, edges.of({})) == 0


# --------------------------------------------------------------------------- alignment
def test_alignment_finds_frame_scale_and_what_is_off() -> None:
    truth = scene()
    rotations, centres = disturbed(truth, 1, 0.02)
    rotations[[2, 5]], centres[[2, 5]] = rotations[[5, 2]], centres[[5, 2]]
    turn = Rotation.from_euler("xyz", [100, 20, 3], degrees=True).as_matrix()
    own = truth.rotations @ turn.T, (truth.centres @ turn.T - [1, 2, 3]) / 7
    found = align(own, (rotations, centres))
    assert found.given_from_own.scale == pytest.approx(7, rel=0.02)
    assert np.flatnonzero(found.contradicted()).tolist() == [2, 5]
    assert found.rotation_stddev_deg == pytest.approx(1, rel=0.5)
    assert found.position_stddev == pytest.approx(0.02, rel=0.5)


def test_near_views_are_near_and_some_are_further() -> None:
    angles = np.radians(np.arange(0, 360, 5))
    centres = np.stack([np.cos(angles), 0 * angles, np.sin(angles)], axis=1)
    right = np.cross([0, 1, 0], -centres)
    rotations = np.stack([right, np.cross(-centres, right), -centres], axis=1)
    names = [f"{k:02}" for k in range(len(angles))]
    partners = near_partners(names, rotations, centres, num_neighbours=6)
    pairs = Pairs.of_partners(partners)
    steps = [min(b - a, 72 - b + a) for a, b in ((int(a), int(b)) for a, b in pairs)]
    assert set(steps) >= {1, 2} and max(steps) == 18  # 90 degrees
    assert len(pairs) <= 72 * 6
    alone = near_partners(["a"], rotations[:1], centres[:1], num_neighbours=6)
    assert not alone["a"]


# ------------------------------------------------------------------------------ models
def capture(path: Path) -> dict[str, CameraPose]:
    poses = orbit(
        *(path, lens("SIMPLE_PINHOLE", 650)),
        guess_px=650,
        is_prior=True,
        num_images=7,
        num_points=150,
        turn=1.5,
    )
    verify_matches(
        *(path, exhaustive_pairs(sorted(poses)), DatabaseConfig()), num_threads=1
    )
    return poses


def test_models_keep_the_frame_and_replace_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = capture(path)
    names = sorted(truth)
    exact = Scene(
        np.array([truth[name].rotation for name in names]),
        np.array([truth[name].centre for name in names]),
        scene().edges,
    )
    rotations, centres = disturbed(exact, 1, 0.02)
    rotations[[2, 3]], centres[[2, 3]] = rotations[[3, 2]], centres[[3, 2]]
    poses = known(rotations, centres).chosen({n: n for n in names[:-1]})
    models, changes = map_from_poses(
        *(
            path,
            ImageSet(tmp_path, tuple(names), {}, {}),
            tmp_path / "models",
            MappingConfig(),
            poses,
        ),
        where="poses.csv",
        cameras=DatabaseConfig(focal_length=650, camera_model="SIMPLE_PINHOLE"),
    )
    (model,) = models
    assert model.num_reg_images() == 7
    assert evaluate_model(model, truth).auc[1] > 90
    for image in model.images.values():
        off = image.projection_center() - truth[image.name].centre
        assert np.linalg.norm(off) < 0.1  # of a circle of radius 1.6
    assert [c.name for c in changes.changes if c.is_contradicted] == [
        "02.jpg",
        "03.jpg",
    ]
    assert changes.added == ("06.jpg",)
    assert changes.lost == ()
    assert changes.num_given == 6
    changes.write(tmp_path / "changes.json")
    assert PoseChanges.read(tmp_path / "changes.json") == changes
    with pytest.raises(StoreError):
        PoseChanges.read(tmp_path / "no.json")
