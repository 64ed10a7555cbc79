"""Which lens model every camera needs: that which fits tracks it was not adjusted to.

With the same matches the camera model decides how exact poses are: on the distorted
images of ETH3D AUC@1 is 36.5 with one coefficient and 69.7 with a wider model (COLMAP,
pull request 4658). But coefficients that the tracks do not tell bend a model, and the
errors of what was adjusted always fall with more of them. So a fifth of the tracks is
left out, and a model with more coefficients is taken where those fit clearly better.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pycolmap

from sfmprep.errors import ReconstructionError
from sfmprep.geometry.blocks import blocks
from sfmprep.geometry.triangulate import reprojection_errors, triangulate
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.mapping.adjust import adjust, cameras_in
from sfmprep.mapping.lenses import is_plausible, with_model
from sfmprep.types import Float64, Index

logger = logging.getLogger(__name__)

_Model = pycolmap.CameraModelId
# Models that trainers read, with more and more coefficients. Those of fisheye lenses
# are polynomials of the angle, and fit wide lenses where those of its tangent fold.
_LADDERS = {
    _Model.SIMPLE_RADIAL: (
        *(_Model.RADIAL, _Model.OPENCV, _Model.RADIAL_FISHEYE, _Model.OPENCV_FISHEYE),
    ),
    _Model.SIMPLE_RADIAL_FISHEYE: (_Model.RADIAL_FISHEYE, _Model.OPENCV_FISHEYE),
}

_MAX_IMAGES = 500  # that are adjusted together
_BLOCK_IMAGES = 250
_MIN_IMAGES = 8  # of a camera whose lens is to be told
_MIN_TRACKS = 50  # left out, that a camera sees
_MIN_VIEWS = 3  # of a track: two fit each other with almost any lens
_LEFT_OUT = 5  # one track in so many
_PER_IMAGE = 400  # observations of one image that are adjusted, about
# What left-out tracks must gain: standard errors of the mean, and a share of it. Tracks
# of one image err together, so more than chance alone asks for: real scenes whose lens
# has one coefficient gave up to 4 errors, lenses that have more 6 to 13.
_MIN_DEVIATIONS = 5.0
_MIN_GAIN = 0.005
_LOSS_SCALE = 2.385  # standard deviations, of Cauchy's loss: see `adjust.py`
_MAX_RATIO = 1e3  # of an error to that, where a ray does not meet its track
_MEDIAN_LENGTH = 1.1774  # of a vector whose two components have the deviation 1


def choose_lenses(
    model: pycolmap.Reconstruction, known: Collection[int] = (), *, seed: int = 0
) -> pycolmap.Reconstruction:
    """Returns a copy of a model whose cameras have the lens models that tracks tell.

    Cameras of one coefficient, with eight images or more, are asked; with `RADIAL`,
    `OPENCV`, `RADIAL_FISHEYE` and `OPENCV_FISHEYE` (for a fisheye lens the last two),
    one after the other, the copy is adjusted to four fifths of the tracks, its
    principal points free: else the decentring of OPENCV would be taken in their place.
    The other fifth is then triangulated, and a model is taken where their errors, by
    Cauchy's loss, fall by more than chance explains. A lens that folds (see
    `is_plausible`) is none. Poses, points and principal points are those of the model
    that came in: what follows is `refine_model`.

    In models of more than 500 images a camera is asked in the first block of some 250
    (see `geometry.blocks`) that eight of its images are in: that tells a lens as well.

    Args:
        model: It stays as it is.
        known: Ids of cameras that are not asked.
        seed: Of which tracks are left out.
    """
    asked = _askable(model, known)
    if not asked:
        return model
    chosen = pycolmap.Reconstruction(model)
    parts: Iterable[pycolmap.Reconstruction] = [model]
    if model.num_reg_images() > _MAX_IMAGES:
        parts = (part for _, part in blocks(ModelArrays.of(model), _BLOCK_IMAGES))
    for part in parts:
        here = asked & _askable(part, known)
        if here:
            asked -= _choose(part, here, chosen, seed)
        if not asked:
            break
    return chosen


def _askable(model: pycolmap.Reconstruction, known: Collection[int]) -> set[int]:
    """Cameras with one coefficient and enough images."""
    return {
        key
        for key, count in cameras_in(model).items()
        if key not in known
        and count >= _MIN_IMAGES
        and model.cameras[key].model in _LADDERS
    }


def _choose(
    model: pycolmap.Reconstruction,
    asked: set[int],
    chosen: pycolmap.Reconstruction,
    seed: int,
) -> set[int]:
    """Gives cameras of `chosen` the lenses that the tracks of a model tell.

    Returns:
        The cameras that they can tell.
    """
    split = Split.of(model, seed)
    asked = {key for key in asked if split.num_tracks(key) >= _MIN_TRACKS}
    held = cameras_in(model).keys() - asked
    first = {key: model.cameras[key].model for key in asked}
    best = split.adjusted({}, held) if asked else None
    if best is None:
        return set()
    for step in range(max(map(len, _LADDERS.values()))):
        lenses = {
            key: with_model(best.cameras[key], _LADDERS[first[key]][step])
            for key in asked
            if step < len(_LADDERS[first[key]])
        }
        tried = split.adjusted({**_cameras(best), **lenses}, held)
        if tried is None:
            continue
        before, after = split.errors(best), split.errors(tried)
        gained = {
            key
            for key in lenses
            if is_plausible(tried.cameras[key], best.cameras[key])
            and split.is_gain(before, after, key)
        }
        if gained == asked:
            best = tried
        elif gained:  # the others keep what they had, which moves all again
            lenses = {key: lenses[key] for key in gained}
            best = split.adjusted({**_cameras(best), **lenses}, held) or best
    for key in sorted(asked):
        camera = best.cameras[key]
        if camera.model != first[key]:
            logger.info(
                "camera %d: tracks left out of the adjustment fit better with the lens"
                " model %s",
                *(key, camera.model_name),
            )
            params = np.array(camera.params)
            params[list(camera.principal_point_idxs())] = [
                model.cameras[key].principal_point_x,
                model.cameras[key].principal_point_y,
            ]
            chosen.cameras[key].model = camera.model
            chosen.cameras[key].params = params.tolist()
    return asked


def _cameras(model: pycolmap.Reconstruction) -> dict[int, pycolmap.Camera]:
    return dict(model.cameras.items())


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A model without some of its tracks, and these."""

    rest: pycolmap.Reconstruction
    left_out: Observations
    camera_ids: Index  # [M] of the observations left out

    @staticmethod
    def of(model: pycolmap.Reconstruction, seed: int) -> Split:
        """Of a sample of the tracks that three images or more see."""
        arrays = ModelArrays.of(model)
        views, observations = arrays.views, arrays.observations
        random = np.random.default_rng(seed)
        long = observations.counts() >= _MIN_VIEWS
        share = _PER_IMAGE * len(views) / max(observations.counts()[long].sum(), 1)
        drawn = long & (random.random(len(long)) < share)
        out = drawn & (random.integers(_LEFT_OUT, size=len(long)) == 0)
        rest = pycolmap.Reconstruction(model)
        for point_id in arrays.point_ids[~drawn | out].tolist():
            rest.delete_point3D(point_id)
        left_out = observations.select(out[observations.point])
        of_view = np.array([camera.camera_id for camera in views.cameras], np.int64)
        return Split(
            rest=rest,
            left_out=left_out,
            camera_ids=of_view[left_out.view],
        )

    def num_tracks(self, key: int) -> int:
        """How many tracks left out a camera sees."""
        return len(np.unique(self.left_out.point[self.camera_ids == key]))

    def adjusted(
        self, cameras: Mapping[int, pycolmap.Camera], held: Collection[int]
    ) -> pycolmap.Reconstruction | None:
        """The rest with these cameras, adjusted; None where there is no solution.

        Cameras that are not named stay.
        """
        model = pycolmap.Reconstruction(self.rest)
        for key, camera in cameras.items():
            model.cameras[key].model = camera.model
            model.cameras[key].params = camera.params.tolist()
        try:
            adjust(model, fixed=held, centres=True)
        except ReconstructionError as error:
            logger.debug("no lens: %s", error)
            return None
        return model

    def errors(self, model: pycolmap.Reconstruction) -> Float64:
        """Pixels [M] that the observations left out miss, triangulated anew."""
        views, seen = Views.of(model), self.left_out
        ray = np.empty((len(seen), 3))
        for view, rows in enumerate(seen.by_view(len(views))):
            ray[rows] = views.rays(view, seen.xy[rows])
        seen = replace(seen, ray=ray)
        return reprojection_errors(views, seen, triangulate(views, seen))

    def is_gain(self, before: Float64, after: Float64, key: int) -> bool:
        """Whether the errors of a camera's tracks fall by more than chance explains."""
        share, deviations = self.gain(before, after, key)
        logger.debug("camera %d: gain %.4f, %.1f errors", key, share, deviations)
        return deviations > _MIN_DEVIATIONS and share > _MIN_GAIN

    def gain(self, before: Float64, after: Float64, key: int) -> tuple[float, float]:
        """By how much the errors of a camera's tracks fall.

        They count by Cauchy's loss, with a scale of those before.

        Returns:
            The share of the loss that goes, and the mean over tracks of what goes, in
            its standard errors.
        """
        own = self.camera_ids == key
        scale = max(_LOSS_SCALE * float(np.median(before[own])) / _MEDIAN_LENGTH, 1e-3)
        old, new = (
            np.log1p(np.minimum(errors[own] / scale, _MAX_RATIO) ** 2)
            for errors in (before, after)
        )
        _, track = np.unique(self.left_out.point[own], return_inverse=True)
        gain = np.bincount(track, old - new)
        mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
        return float(gain.sum() / max(old.sum(), 1e-12)), mean / max(error, 1e-12)
