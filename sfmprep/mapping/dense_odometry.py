"""The way of a camera through a film by DROID: flow and adjustment in turns.

Between frames that follow each other the update operator says where each cell should
be; poses and inverse depths are moved there; from there it looks again. What lies
further back than the window holds still. Nothing closes loops: poses drift, and are a
start for others. Idea and settings: DROID-SLAM (Teed & Deng, NeurIPS 2021). Its frames
are chosen before, and those of today's window are all held against each other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sfmprep.mapping.dense_adjustment import (
    DenseWindow,
    Edges,
    adjust_dense,
    project,
)
from sfmprep.models.flow.droid import Droid, DroidImage
from sfmprep.models.flow.encoder import CELL
from sfmprep.types import Float64

FIRST = 8  # frames from which on there are poses
_NEIGHBOURS = 3  # frames to either side that one is held against
_WINDOW = 8  # frames that are looked at
_FIRST_UPDATES, _UPDATES = 16, 4
_STEPS = 2  # of the adjustment, in an update
_DAMPING_SHARE, _DAMPING_FLOOR = 0.2, 1e-7
_HELD = 2  # frames of the window that do not move: they hold world and scale


class DenseOdometry:
    """Poses of one shot, from its frames as they come.

    Args:
        droid: The update operator.
        focal: Focal length in pixels of the frames.
    """

    def __init__(self, droid: Droid, focal: float) -> None:
        self._droid, self._focal = droid, focal
        self._images: list[DroidImage] = []  # of the window
        self._hidden: dict[tuple[int, int], Tensor] = {}  # by numbers of frames
        self._target: dict[tuple[int, int], Tensor] = {}
        self._rotations: list[Tensor] = []  # of all frames
        self._translations: list[Tensor] = []
        self._inverse_depths: list[Tensor] = []  # of the window

    @property
    def cam_from_world(self) -> tuple[Float64, Float64]:
        """Rotations [N, 3, 3] and translations [N, 3] of the frames until now.

        With fewer than eight frames nothing has moved yet. The unit of length is any.
        """
        if not self._rotations:
            return np.empty((0, 3, 3)), np.empty((0, 3))
        both = torch.stack(self._rotations), torch.stack(self._translations)
        rotations, translations = (each.cpu().numpy() for each in both)
        return rotations, translations

    @torch.inference_mode()
    def push(self, image: DroidImage) -> None:
        """Takes the next frame, of the size of those before.

        Raises:
            DeviceError: the window does not fit into the memory of the device.
        """
        here = image.features
        number = len(self._rotations)
        if number:
            middle = torch.median(self._inverse_depths[-1])
            turn, shift = self._rotations[-1], self._translations[-1]
        else:
            middle = here.new_ones((), dtype=torch.float64)
            turn = torch.eye(3, dtype=torch.float64, device=here.device)
            shift = turn.new_zeros(3)
        self._images.append(image)
        self._rotations.append(turn)
        self._translations.append(shift)
        self._inverse_depths.append(middle.expand(here.shape[1:]).clone())
        del self._images[:-_WINDOW], self._inverse_depths[:-_WINDOW]
        if number + 1 < FIRST:
            return
        is_first = number + 1 == FIRST
        for _ in range(_FIRST_UPDATES if is_first else _UPDATES):
            self._update(1 if is_first else _HELD)

    # ----------------------------------------------------------------------- internals
    def _update(self, num_fixed: int) -> None:
        """One update of all edges, and steps of the adjustment to where they lead."""
        first = len(self._rotations) - len(self._images)
        window = self._window(first)
        frames = range(first, len(self._rotations))
        names = [
            (i, j) for i in frames for j in frames if 0 < abs(i - j) <= _NEIGHBOURS
        ]
        self._hidden = {k: v for k, v in self._hidden.items() if k in names}
        self._target = {k: v for k, v in self._target.items() if k in names}
        rows = torch.tensor(names, device=window.camera.device) - first
        edges = Edges(source=rows[:, 0], other=rows[:, 1])
        places = project(window, edges).places
        images = [(self._images[i - first], self._images[j - first]) for i, j in names]
        hidden = [
            self._hidden.get(name, images[row][0].hidden)
            for row, name in enumerate(names)
        ]
        before = [self._target.get(name, places[row]) for row, name in enumerate(names)]
        found = self._droid.update(
            *(images, torch.stack(hidden), places, torch.stack(before), edges.source)
        )
        target = places + found.delta.permute(0, 2, 3, 1)
        for row, name in enumerate(names):
            self._hidden[name], self._target[name] = found.hidden[row], target[row]
        damping = _DAMPING_SHARE * found.damping + _DAMPING_FLOOR
        for _ in range(_STEPS):
            window = adjust_dense(
                *(window, edges, target, found.weight.permute(0, 2, 3, 1), damping),
                num_fixed=num_fixed,
            )
        if num_fixed == 1:  # else the scale is that of what does not move
            window = _normalised(window)
        self._rotations[first:] = window.rotations.unbind()
        self._translations[first:] = window.translations.unbind()
        self._inverse_depths = list(window.inverse_depths.unbind())

    def _window(self, first: int) -> DenseWindow:
        image = self._images[-1]
        left, _, top, _ = image.padding
        width, height = image.size
        # a cell's place is that of its first pixel, as the network was trained
        camera = [self._focal, self._focal, left + width / 2, top + height / 2]
        depths = torch.stack(self._inverse_depths)
        return DenseWindow(
            rotations=torch.stack(self._rotations[first:]),
            translations=torch.stack(self._translations[first:]),
            inverse_depths=depths,
            camera=torch.tensor(camera).to(depths) / CELL,
        )


def _normalised(window: DenseWindow) -> DenseWindow:
    """The same scene in the unit in which inverse depths are 1 on average."""
    mean = window.inverse_depths.mean().clamp(min=1e-6)
    return replace(
        window,
        translations=window.translations * mean,
        inverse_depths=window.inverse_depths / mean,
    )
