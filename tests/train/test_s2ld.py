import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sfmprep.config import S2ldConfig
from sfmprep.errors import ConfigError, WeightsError
from sfmprep.models.semidense.s2ld import S2ld
from sfmprep.models.semidense.s2ld_network import S2ldNetwork
from sfmprep.train.s2ld import data
from sfmprep.train.s2ld import train as training
from sfmprep.train.s2ld.data import PairBatch, draw_batch
from sfmprep.train.s2ld.init import random_network, warm_start
from sfmprep.train.s2ld.losses import (
    coarse_loss,
    fine_loss,
    keypoint_losses,
    triangulate_least_squares,
    triangulation_loss,
)
from sfmprep.train.s2ld.supervision import (
    CoarseTruth,
    PairTruth,
    choose_fine_matches,
    find_coarse_truth,
    find_fine_truth,
)
from sfmprep.train.s2ld.train import (
    LOSS_WEIGHTS,
    compute_losses,
    learning_rate,
    log_confidences,
    train_s2ld,
)
from tests.support.confidences import confidence_matrix

SIDE = 96
GRID = (SIDE // 8, SIDE // 8)
CELLS = GRID[0] * GRID[1]
SHIFT = 16.0  # pixels that points move to the left, in `shifted_plane`


def anchors(num_pairs: int = 1) -> torch.Tensor:
    step = torch.arange(0, SIDE, 8).float()
    grid = torch.stack(torch.meshgrid(step, step, indexing="xy"), -1)
    return grid.reshape(1, -1, 2).repeat(num_pairs, 1, 1)


def shifted_plane(num_pairs: int = 1) -> PairTruth:
    """A plane at depth 4 that the second camera sees 16 pixels further left."""
    K = torch.tensor([[100.0, 0, 48], [0, 100, 48], [0, 0, 1]]).repeat(num_pairs, 1, 1)
    motion = torch.eye(4).repeat(num_pairs, 1, 1)
    motion[:, 0, 3] = -SHIFT * 4 / 100
    depth = torch.full((num_pairs, SIDE, SIDE), 4.0)
    return PairTruth(depth, depth, K, K, motion)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height // 4, width // 4, 3))
    grown = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return (grown.clip(0, 1) * 255).astype(np.uint8)


def shifted_pair() -> PairBatch:
    image = torch.from_numpy(texture(SIDE, SIDE + int(SHIFT))[..., 0]).float() / 255
    grey0, grey1 = image[:, :SIDE], image[:, int(SHIFT) :]
    return PairBatch(grey0[None, None], grey1[None, None], shifted_plane())


@pytest.fixture
def sharp_network() -> S2ldNetwork:
    """Random weights whose descriptors are long enough for confident matches.

    Only in training mode: the means and variances of its layers were never measured.
    """
    network = random_network(seed=0)
    with torch.no_grad():
        network.feature_adjuster.c_convs[1][1].weight.mul_(3)
    return network


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Supervision


def test_points_move_with_the_plane_and_back():
    truth = shifted_plane()
    xy = torch.tensor([[[40.25, 30.5], [70.0, 8.0]]])
    there, visible = truth.warp0(xy)
    torch.testing.assert_close(there, xy - torch.tensor([SHIFT, 0]), atol=1e-3, rtol=0)
    back, _ = truth.swapped().warp0(there)
    torch.testing.assert_close(back, xy, atol=1e-3, rtol=0)
    assert visible.all()


@pytest.mark.parametrize("what", ["unknown", "outside", "occluded"])
def test_points_that_cannot_be_seen_are_not_visible(what):
    truth = shifted_plane()
    xy = torch.tensor([[[40.0, 40.0]]])
    if what == "unknown":
        truth.depth0[:, 40, 40] = 0
    elif what == "outside":
        xy[..., 0] = SHIFT - 1
    else:
        truth.depth1[:, 40, 24] = 3  # something nearer stands there
    assert not truth.warp0(xy)[1].any()


def test_cells_match_their_shifted_cells():
    found = find_coarse_truth(anchors(2), anchors(2), shifted_plane(2))
    assert torch.equal(found.cell1, found.cell0 - 2)
    assert (found.cell0 % GRID[1] >= 2).all()
    rows, columns = GRID
    # the first and last row and column are on the border of what is seen
    assert len(found.batch) == 2 * (rows - 1) * (columns - 3)


def test_hidden_cells_do_not_match():
    truth = shifted_plane()
    hidden = 5 * GRID[1] + 5
    assert hidden in find_coarse_truth(anchors(), anchors(), truth).cell0
    # something nearer stands before the cell's partner at (24, 40)
    truth.depth1[:, 39:42, 23:26] = 3.3
    assert hidden not in find_coarse_truth(anchors(), anchors(), truth).cell0


def test_fine_truth_is_one_at_four_pixels_and_infinite_where_not_visible():
    truth = shifted_plane()
    truth.depth0[:, 40, 80] = 0
    points1 = anchors()
    coarse = find_coarse_truth(anchors(), points1, truth)
    cell0 = torch.tensor([5 * 12 + 5, 5 * 12 + 10])
    points1[:, cell0 - 2, 0] -= 4
    target = find_fine_truth(
        torch.zeros(2, dtype=torch.int64), cell0, cell0 - 2, coarse, points1
    )
    torch.testing.assert_close(target[0], torch.tensor([1.0, 0]), atol=2e-3, rtol=0)
    assert target[1].isinf().all()


def make_positives(count: int) -> CoarseTruth:
    index = torch.arange(count)
    nothing = torch.zeros(1, CELLS, 2)
    return CoarseTruth(index * 0, index, index, nothing, nothing[..., 0] > 0)


def test_predictions_leave_places_to_true_matches():
    cells = torch.arange(100) + 1000
    batch, cell0, _, is_predicted = choose_fine_matches(
        (cells * 0, cells, cells),
        make_positives(50),
        num_matches=40,
        min_positives=10,
        generator=seeded(),
    )
    assert is_predicted.tolist() == [True] * 30 + [False] * 10
    assert (cell0[:30] >= 1000).all()
    assert (cell0[30:] < 50).all()
    assert len(cell0.unique()) == len(batch) == 40


def test_true_matches_stand_in_for_predictions():
    none = torch.empty(0, dtype=torch.int64)
    chosen = choose_fine_matches(
        (none, none, none),
        make_positives(7),
        num_matches=40,
        min_positives=10,
        generator=seeded(),
    )
    assert sorted(chosen[1].tolist()) == list(range(7))
    assert not chosen[3].any()


# Losses


def test_coarse_loss_teaches_the_smallest_confidence():
    log_confidence = torch.full((1, CELLS, CELLS), -20.0, requires_grad=True)
    coarse_loss(log_confidence, make_positives(5)).backward()
    assert log_confidence.grad[0, :5, :5].diagonal().abs().min() > 0


def test_coarse_loss_is_focal_of_positives_and_negatives():
    log_confidence = torch.full((1, CELLS, CELLS), -0.5)
    confidence = np.exp(-0.5)
    positive = 0.25 * (1 - confidence) ** 2 * 0.5
    negative = -0.25 * confidence**2 * np.log(1 - confidence)
    loss = coarse_loss(log_confidence, make_positives(5))
    assert float(loss) == pytest.approx(positive + negative, rel=1e-5)


def test_fine_loss_leaves_out_what_is_outside_of_the_window():
    expectation = torch.tensor([[0.5, 0, 1], [0, 0, 1], [0, 0, 1]], requires_grad=True)
    target = torch.tensor([[0.25, 0], [1.5, 0], [torch.inf, torch.inf]])
    loss = fine_loss(expectation, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0625)
    assert expectation.grad.tolist() == [[0.5, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_keypoint_loss_moves_the_second_image_alone():
    points0 = anchors().requires_grad_()
    points1 = (anchors() + torch.tensor([1.0, 0])).requires_grad_()
    scores = torch.full((1, 1, *GRID), 0.5)
    location, _, _ = keypoint_losses(points0, points1, scores, scores, shifted_plane())
    location.backward()
    assert float(location.detach()) == pytest.approx(1, abs=5e-3)
    assert points0.grad is None or not points0.grad.any()
    assert float(points1.grad[..., 0].sum()) == pytest.approx(1, abs=1e-3)


def test_reliability_raises_scores_where_keypoints_repeat():
    points1 = anchors()
    points1[:, : CELLS // 2, 0] += 3  # the upper half does not repeat
    scores0 = torch.full((1, 1, *GRID), 0.5, requires_grad=True)
    scores1 = torch.full((1, 1, *GRID), 0.5)
    _, reliability, _ = keypoint_losses(
        anchors(), points1, scores0, scores1, shifted_plane()
    )
    reliability.backward()
    upper, lower = scores0.grad[0, 0, 1:6, 3:], scores0.grad[0, 0, 6:-1, 3:]
    assert (upper[:, :-1] > 0).all()
    assert (lower[:, :-1] < 0).all()


def test_scores_agree_at_the_same_point():
    ramp = torch.arange(GRID[1]).float().repeat(1, 1, GRID[0], 1) / 20
    for offset, agrees in ((SHIFT / 8 / 20, True), (0.0, False)):
        *_, agreement = keypoint_losses(
            anchors(), anchors(), ramp, ramp + offset, shifted_plane()
        )
        assert bool(agreement < 1e-6) is agrees


def exact_matches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    xy0 = torch.tensor([[40.0, 30], [60, 50], [80, 70]])
    confidence = torch.tensor([0.9, 0.5, 0.3])
    return xy0, xy0 - torch.tensor([SHIFT, 0]), confidence, torch.zeros(3).long()


def test_exact_matches_triangulate_to_the_true_depth():
    xy0, xy1, confidence, batch = exact_matches()
    points = triangulate_least_squares(xy0, xy1, confidence, batch, shifted_plane())
    torch.testing.assert_close(points[:, 2], torch.full((3,), 4.0))


def test_a_doubtful_match_lies_on_the_first_ray():
    xy0, xy1, _, batch = exact_matches()
    beside = xy1 + torch.tensor([0, 3.0])
    errors = []
    for weight in (1.0, 0.1):
        points = triangulate_least_squares(
            xy0, beside, torch.full((3,), weight), batch, shifted_plane()
        )
        projected = points @ shifted_plane().K0[0].T
        errors.append(float((projected[:, :2] / projected[:, 2:] - xy0).norm()))
    assert errors[1] < 0.1 * errors[0]


def test_triangulation_teaches_points_and_confidence():
    xy0, xy1, confidence, batch = exact_matches()
    shift = torch.tensor([[1.0, 2], [-1, 1], [0.5, -1]])
    inputs = [xy0, xy1 + shift, confidence]
    target = torch.zeros(3, 2)
    for each in inputs:
        each.requires_grad_()
    loss = triangulation_loss(*inputs, batch, target, shifted_plane())
    gradients = torch.autograd.grad(loss, inputs)
    assert all(each.isfinite().all() and each.abs().sum() > 0 for each in gradients)


def test_triangulation_pulls_the_match_to_the_truth():
    xy0, xy1, confidence, batch = exact_matches()
    moved = (xy1 + torch.tensor([1.0, 0])).requires_grad_()
    loss = triangulation_loss(
        xy0, moved, confidence, batch, torch.zeros(3, 2), shifted_plane()
    )
    loss.backward()
    assert (moved.grad[:, 0] > 0).all()


@pytest.mark.parametrize("why", ["outside", "unknown", "no parallax", "no matches"])
def test_triangulation_of_nothing_usable_is_zero(why):
    xy0, xy1, confidence, batch = exact_matches()
    truth, target = shifted_plane(), torch.zeros(3, 2)
    if why == "outside":
        target += torch.inf
    elif why == "unknown":
        truth.depth0.zero_()
    elif why == "no parallax":
        truth.cam1_from_cam0[:, 0, 3] *= 0.05
        xy1 = xy0 - torch.tensor([SHIFT * 0.05, 0])
    else:
        xy0, xy1, confidence, batch, target = (
            each[:0] for each in (xy0, xy1, confidence, batch, target)
        )
    xy1.requires_grad_()
    loss = triangulation_loss(xy0, xy1, confidence, batch, target, truth)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not xy1.grad.any()


# Training


@pytest.mark.slow
def test_a_step_along_each_loss_lowers_it(sharp_network):
    network, pair = sharp_network.train(), shifted_pair()
    start = {k: v.clone() for k, v in network.state_dict().items()}
    parameters = list(network.parameters())
    losses, counts = compute_losses(network, pair, generator=seeded())
    assert counts["matches"] > 5
    gradients = {
        name: torch.autograd.grad(
            loss, parameters, retain_graph=True, materialize_grads=True
        )
        for name, loss in losses.items()
    }
    for name, directions in gradients.items():
        before = float(losses[name].detach())
        squared = sum(float(each.square().sum()) for each in directions)
        # a step that would lower a straight loss by a thousandth
        rate = 1e-3 * abs(before) / squared
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= rate * direction
            after, _ = compute_losses(network, pair, generator=seeded())
        network.load_state_dict(start)
        assert float(after[name]) < before, name


def test_depth_loss_reaches_detector_and_both_transformers(sharp_network):
    losses, _ = compute_losses(sharp_network, shifted_pair(), generator=seeded())
    losses["depth"].backward()
    for name in (
        "keypoint_detector.k_regressor.2.0.weight",
        "s2ld_fine.layers.0.v_proj.weight",
        "s2ld_coarse.layers.7.mlp.2.weight",
        "backbone.conv1.weight",
    ):
        gradient = sharp_network.get_parameter(name).grad
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_truth_of_an_image_twice_as_large_is_in_colmap_pixels():
    """What lies at a lies at 2 a, with no half."""
    K0 = torch.tensor([[[40.0, 0, 32], [0, 40, 24], [0, 0, 1]]])
    K1 = torch.tensor([[[80.0, 0, 64], [0, 80, 48], [0, 0, 1]]])
    truth = PairTruth(
        torch.ones(1, 48, 64),
        torch.ones(1, 96, 128),
        *(K0, K1, torch.eye(4)[None]),
    )
    at = torch.tensor([[[4.0, 3.0], [7.5, 12.5]]])
    warped, valid = truth.warp0(at)
    torch.testing.assert_close(warped, 2 * at)
    assert valid.all()


def test_training_data_has_colmap_intrinsics(monkeypatch):
    views = []
    whole = data.sample_parallax

    def seen(*args, **kwargs):
        views.append(whole(*args, **kwargs))
        return views[-1]

    monkeypatch.setattr(data, "sample_parallax", seen)
    batch = draw_batch(
        np.random.default_rng(1),
        [texture(480, 640)],
        num_pairs=1,
        size=SIDE,
        difficulty=0.0,
    )
    half = torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    for K, centred in ((batch.truth.K0, views[0].K0), (batch.truth.K1, views[0].K1)):
        torch.testing.assert_close(K[0], torch.from_numpy(centred).float() + half)


def test_log_confidences_are_those_of_matching():
    tokens0, tokens1 = torch.randn(2, 2, CELLS, 256, generator=seeded()).unbind()
    ours = log_confidences(tokens0, tokens1).exp()
    torch.testing.assert_close(ours, confidence_matrix(tokens0, tokens1))


def test_first_weights_depend_on_the_seed_alone():
    torch.rand(3)
    first, second, other = (random_network(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["backbone.conv1.weight"], other["backbone.conv1.weight"]
    )


def test_learning_rate_rises_then_falls():
    assert learning_rate(0) < learning_rate(20) < learning_rate(50)
    assert learning_rate(50) > learning_rate(5000) > learning_rate(50000) > 0


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_pairs_show_the_same_where_depth_says(difficulty):
    batch = draw_batch(
        np.random.default_rng(1),
        [texture(480, 640)],
        num_pairs=2,
        size=SIDE,
        difficulty=difficulty,
    )
    warped, visible = batch.truth.warp0(anchors(2) + 0.5)  # the pixels' centres
    warped = warped - 0.5
    seen = torch.nn.functional.grid_sample(
        batch.grey1, (warped / ((SIDE - 1) / 2) - 1)[:, None], align_corners=True
    )[:, 0, 0]
    expected = batch.grey0[:, 0, ::8, ::8].flatten(1)
    assert visible.float().mean() > 0.2
    for pair in range(2):
        both = torch.stack((seen[pair], expected[pair]))[:, visible[pair]]
        assert torch.corrcoef(both)[0, 1] > 0.5  # whatever the light


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(3):
        cv2.imwrite(str(folder / f"{seed}.png"), texture(160, 200, seed))
    return folder


@pytest.mark.slow
def test_a_cut_run_equals_an_uncut_one_and_logs_every_loss(
    photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "_LOG_EVERY", 1)
    settings = {"minutes": 10, "seed": 5, "crop": 64, "batch": 1}
    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    assert train_s2ld(photographs, uncut, max_steps=2, **settings) == 2
    assert train_s2ld(photographs, cut, max_steps=1, **settings) == 1
    assert train_s2ld(photographs, cut, max_steps=2, **settings) == 2
    one, two = (torch.load(out / "s2ld.pt", weights_only=True) for out in (cut, uncut))
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
    moments = (each["optimiser"]["state"][0]["exp_avg"] for each in (one, two))
    assert torch.equal(*moments)
    assert S2ld(S2ldConfig(weights=cut / "s2ld.pt")).identity
    for out in (cut, uncut):
        lines = (out / "s2ld.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [1, 2]
        assert all(np.isfinite(row[name]) for row in rows for name in LOSS_WEIGHTS)


@pytest.mark.parametrize("bad", [{"crop": 100}, {"crop": 32}, {"batch": 0}])
def test_unusable_settings_are_refused(bad, tmp_path):
    with pytest.raises(ConfigError, match="multiple of 8"):
        train_s2ld(tmp_path, tmp_path, minutes=0, **bad)


def test_warm_start_takes_all_that_loftr_has(tmp_path):
    from kornia.feature import LoFTR

    theirs = LoFTR(pretrained=None).state_dict()
    path = tmp_path / "loftr.ckpt"
    torch.save({"state_dict": {f"matcher.{k}": v for k, v in theirs.items()}}, path)
    network = S2ldNetwork()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    warm_start(network, path)
    taken = 0
    for name, tensor in network.state_dict().items():
        source = theirs.get(name.replace("s2ld_", "loftr_"))
        taken += source is not None
        assert torch.equal(tensor, before[name] if source is None else source), name
    assert taken == 211


def test_warm_start_refuses_other_weights(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"backbone.conv1.weight": torch.zeros(128, 1, 7, 7)}, path)
    with pytest.raises(WeightsError, match="shares 1 tensors"):
        warm_start(S2ldNetwork(), path)
    with pytest.raises(WeightsError, match="is no file"):
        warm_start(S2ldNetwork(), tmp_path / "absent.pt")


# The release: fixture C of shared/fixtures/s2ld, see section 11 of design/s2ld.md


@pytest.fixture(scope="module")
def release(shared: Path) -> dict[str, torch.Tensor]:
    with np.load(shared / "fixtures" / "s2ld" / "fixture.npz") as arrays:
        return {
            name.removeprefix("C/"): torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith("C/")
        }


@pytest.mark.shared
def test_warp_is_that_of_the_release_but_for_its_choice_of_depth_pixels(release):
    truth = PairTruth(
        *(release[name] for name in ("depth0", "depth1", "K0", "K1", "T_0to1"))
    )
    is_image = release["mask0"].flatten(1)[..., None]
    xy0 = release["keypoints0"] * release["scale0"][:, None] * is_image
    warped, visible = truth.warp0(xy0.clamp(min=0))
    theirs = release["w_pt0_valid_mask"]
    assert (visible == theirs).float().mean() > 0.99
    step = (warped - release["w_pt0_i_all"]).norm(dim=2)[theirs]
    assert float(step.median()) < 2e-3
    assert float(step.max()) < 0.5


@pytest.mark.shared
def test_fine_loss_equals_the_release(release):
    loss = fine_loss(release["expec_f"], release["expec_f_gt"])
    assert float(loss) == pytest.approx(float(release["loss/loss_f"]), rel=1e-5)
