from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sfmprep.models.shared.sampling import Kernel, sample


@pytest.mark.parametrize(
    ("kernel", "mode"), [("linear", "bilinear"), ("cubic", "bicubic")]
)
def test_samples_are_those_of_torch_also_beyond_the_border(
    kernel: Kernel, mode: str
) -> None:
    torch.manual_seed(0)
    height, width = 7, 9
    planes = torch.randn(2, 5, height, width)
    x = torch.rand(2, 200) * (width + 4) - 2.5
    y = torch.rand(2, 200) * (height + 4) - 2.5
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=2)
    expected = F.grid_sample(planes, grid[:, None], mode=mode, align_corners=False)
    image = torch.arange(2)[:, None]
    found = sample(planes.permute(0, 2, 3, 1), image, y, x, kernel=kernel)
    torch.testing.assert_close(
        found, expected[:, :, 0].transpose(1, 2), atol=1e-5, rtol=0
    )


def test_no_position_gives_no_row() -> None:
    none = torch.empty(0)
    found = sample(torch.ones(1, 4, 4, 3), none.long(), none, none)
    assert found.shape == (0, 3)
