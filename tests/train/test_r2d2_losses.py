"""R2D2's losses against the fixture of the reference, and against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfmprep.models.extractors.compact_network import CompactNetwork
from sfmprep.models.extractors.r2d2 import R2d2Network
from sfmprep.train.extractor.data import Batch, make_batch
from sfmprep.train.extractor.r2d2_losses import (
    average_precision,
    cosine_loss,
    peaky_loss,
    places_in_second,
    places_loss,
    reliability_loss,
    repeatability_loss,
)
from sfmprep.train.pairs.views import transform
from tests.support.adapted import adapted
from tests.support.fixtures import filled
from tests.support.textures import texture


@pytest.fixture(scope="module")
def fixture(shared: Path) -> dict[str, torch.Tensor]:
    with np.load(shared / "fixtures" / "r2d2" / "fixture.npz") as file:
        return {
            key.removeprefix("loss/"): torch.from_numpy(file[key])
            for key in file.files
            if key.startswith("loss/")
        }


@pytest.fixture(scope="module")
def repeatability(shared: Path, fixture: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Of the first and of the second images, [2, 64, 64] each."""
    network = R2d2Network(32).eval()
    network.load_state_dict(filled(shared / "fixtures" / "r2d2", "r2d2"))
    found = []
    for name in ("images1", "images2"):
        with torch.inference_mode():
            found.append(network(fixture[name].permute(0, 3, 1, 2).float() / 255)[1])
    return [each.reshape(2, 64, 64) for each in found]


@pytest.fixture(scope="module")
def batch() -> Batch:
    photographs = [texture(k) for k in range(2)]
    teachings = [adapted(k, photograph) for k, photograph in enumerate(photographs)]
    return make_batch(
        np.random.default_rng(0), photographs, teachings, num_pairs=2, size=96
    )


# ------------------------------------------------------------------------ the reference
@pytest.mark.shared
def test_average_precision_is_that_of_the_reference(
    fixture: dict[str, torch.Tensor],
) -> None:
    scores = fixture["ap_scores"]
    found = average_precision(scores[:, 0], scores[:, 1:])
    torch.testing.assert_close(found, fixture["ap"], atol=1e-4, rtol=0)


@pytest.mark.shared
def test_reliability_loss_is_that_of_the_reference(
    fixture: dict[str, torch.Tensor],
) -> None:
    mask = fixture["query_mask"]
    found = reliability_loss(fixture["ap"][mask], fixture["query_reliability"][mask])
    torch.testing.assert_close(found, fixture["reliability"], atol=1e-5, rtol=0)


@pytest.mark.shared
def test_repeatability_losses_are_those_of_the_reference(
    fixture: dict[str, torch.Tensor], repeatability: list[torch.Tensor]
) -> None:
    first, second = repeatability
    grid = fixture["absolute_flow"].permute(0, 2, 3, 1) * 2 / 63 - 1
    grid = grid.nan_to_num(nan=9e9)
    warped = F.grid_sample(
        second[:, None], grid, padding_mode="border", align_corners=False
    )[:, 0]
    found = cosine_loss(first, warped)
    torch.testing.assert_close(found, fixture["cosim"], atol=1e-5, rtol=0)
    found = (peaky_loss(first) + peaky_loss(second)) / 2
    torch.testing.assert_close(found, fixture["peaky"], atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------- by hand
def test_average_precision_by_hand() -> None:
    positive = torch.tensor([1.0, 1.0, 0.5, -0.3])
    negatives = torch.tensor(
        [[0.5, 0.2, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.9, 0.9, 0.9]]
    )
    found = average_precision(positive, negatives).tolist()
    # the only one in the first bin; one of three there
    assert found[:2] == pytest.approx([1, 1 / 3])
    # half of it in each of two bins, after two others and with half of a third each:
    # (1/2 * (1/2) / 3) + (1/2 * 1 / 4)
    assert found[2] == pytest.approx(0.5 * 0.5 / 3 + 0.5 / 4)
    assert found[3] == pytest.approx(1 / 4)  # last of four
    nothing = average_precision(positive[:1], torch.zeros(1, 0))
    assert nothing.tolist() == pytest.approx([1])


def test_average_precision_pulls_the_positive_and_pushes_the_negatives() -> None:
    # halfway between two bins, and near each other
    positive = torch.tensor([11.4 / 19], requires_grad=True)
    negatives = torch.tensor([[11.6 / 19]], requires_grad=True)
    average_precision(positive, negatives).sum().backward()
    assert positive.grad is not None and positive.grad.item() > 0
    assert negatives.grad is not None and negatives.grad.item() < 0


def test_reliability_is_wanted_where_the_precision_is_above_one_half() -> None:
    reliability = torch.tensor([0.2, 0.7, 0.7], requires_grad=True)
    precision = torch.tensor([0.9, 0.5, 0.1])
    loss = reliability_loss(precision, reliability)
    by_hand = [1 - 0.9 * 0.2 - 0.5 * 0.8, 1 - 0.5, 1 - 0.1 * 0.7 - 0.5 * 0.3]
    assert loss.item() == pytest.approx(sum(by_hand) / 3)
    loss.backward()
    assert reliability.grad is not None
    assert (reliability.grad * 3).tolist() == pytest.approx([-0.4, 0, 0.4])
    assert reliability_loss(precision[:0], precision[:0]).item() == 0


def test_cosine_loss_is_of_the_patches_that_both_views_show() -> None:
    torch.manual_seed(0)
    scores = torch.rand(1, 32, 32)
    assert cosine_loss(scores, 0.3 * scores).item() == pytest.approx(0, abs=1e-6)
    one, other = torch.zeros(2, 1, 16, 16).unbind()
    one[0, 0, :2] = other[0, 0, 1:3] = 1  # cosine 1/2
    assert cosine_loss(one, other).item() == pytest.approx(0.5)
    known = torch.ones(1, 32, 32, dtype=torch.bool)
    known[0, 31, 31] = False  # spoils one of nine patches
    wrong = scores.clone()
    wrong[0, 31, 31] = 50
    assert cosine_loss(scores, wrong).item() > 0.05
    assert cosine_loss(scores, wrong, known).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(scores, wrong, known & False).item() == 0


def test_peaky_loss_falls_where_there_are_peaks() -> None:
    flat = torch.full((1, 64, 64), 0.4)
    middle = slice(24, 40)  # of a flat map the border alone is not flat
    assert peaky_loss(flat).item() > 0.85
    peaks = torch.zeros(1, 64, 64)
    peaks[0, 8::16, 8::16] = 1
    assert peaks[0, middle, middle].sum() == 1
    # each window holds one peak, which smoothing makes 1/9; its mean is below 1/250
    assert peaky_loss(peaks).item() == pytest.approx(1 - 1 / 9 + 1 / 270, abs=2e-3)


# ------------------------------------------------------------------------ in a training
def test_places_in_the_second_view_are_those_of_its_homography(batch: Batch) -> None:
    places, is_known = places_in_second(batch.to_second, 96)
    for number, (rows0, rows1) in enumerate(batch.pairs):
        homography = batch.to_second[number].double().numpy()
        expected = transform(homography, batch.xy[rows0].numpy())
        np.testing.assert_allclose(batch.xy[rows1].numpy(), expected, atol=1e-2)
        x, y = batch.xy[rows0].round().long().unbind(1)
        gap = places[number, y, x] - batch.xy[rows1]
        assert gap.norm(dim=1).median() < 1.5
        assert is_known[number, y, x].float().mean() > 0.8


def test_a_place_behind_the_second_view_is_not_known() -> None:
    behind = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    places, is_known = places_in_second(behind[None], 4)
    assert places.isfinite().all() and not is_known.any()


def test_steps_lower_both_losses(batch: Batch) -> None:
    torch.manual_seed(0)
    network = CompactNetwork().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    seen = []
    for _ in range(25):
        maps = network(batch.images)
        descriptors = network.describe(maps, batch.view, batch.xy)
        parts = (
            places_loss(network, maps, descriptors, batch),
            repeatability_loss(maps, batch),
        )
        optimiser.zero_grad()
        torch.stack(parts).sum().backward()
        optimiser.step()
        seen.append([float(part.detach()) for part in parts])
    assert seen[-1][0] < 0.98 * seen[0][0]
    assert seen[-1][1] < 0.98 * seen[0][1]


def test_a_pair_that_shares_nothing_has_no_reliability_loss(batch: Batch) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    apart = replace(batch, pairs=((nothing, nothing), (nothing, nothing)))
    network = CompactNetwork().eval()
    with torch.no_grad():
        maps = network(batch.images)
        descriptors = network.describe(maps, batch.view, batch.xy)
        assert float(places_loss(network, maps, descriptors, apart)) == 0
