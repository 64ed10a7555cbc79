"""Which lens model every camera needs: that which fits tracks it was not adjusted to.

With the same matches the camera model decides how exact poses are: on the distorted
images of ETH3D AUC@1 is 36.5 with one coefficient and 69.7 with a wider model (COLMAP,
pull request 4658). But coefficients that the tracks do not tell bend a model, and the
errors of what was adjusted always fall with more of them. So the tracks are halved, a
model is adjusted to each half, and more coefficients are taken where the halves that
were left out fit clearly better.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pycolmap

from sfmprep.errors import ReconstructionError
from sfmprep.geometry.adjustment import cameras_in
from sfmprep.geometry.blocks import blocks
from sfmprep.geometry.robust import LOSS_SCALE, deviation_of
from sfmprep.geometry.triangulate import reprojection_errors, triangulate
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.mapping.adjust import adjust
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
_MIN_TRACKS = 50  # that a camera sees
_MAX_ALONE = 6  # cameras that are asked without each other, by adjustments of all
_MIN_VIEWS = 3  # of a track: two fit each other with almost any lens
_PER_IMAGE = 800  # observations of one image that are asked, about
_MANY = 40_000  # above so many, half as many of one image
# What left-out tracks must gain: standard errors, and a share of the loss. Whatever the
# halves, real and made captures gave at most 0.7 % for coefficients that move no pose,
# and 4 to 70 % for those that do.
_MIN_DEVIATIONS = 3.0
_MIN_GAIN = 0.015
# Of the loss, of a step: far less than what must be gained.
CHOICE_TOLERANCE = 1e-5
_MAX_RATIO = 1e3  # of an error to that, where a ray does not meet its track


def choose_lenses(
    model: pycolmap.Reconstruction, known: Collection[int] = (), *, seed: int = 0
) -> pycolmap.Reconstruction:
    """Returns a copy of a model whose cameras have the lens models that tracks tell.

    Cameras of one coefficient, with eight images or more, are asked; with `RADIAL`,
    `OPENCV`, `RADIAL_FISHEYE` and `OPENCV_FISHEYE` (for a fisheye lens the last two),
    one after the other, the copy is adjusted to each half of the tracks, its principal
    points free: else the decentring of OPENCV would be taken in their place. The other
    half is then triangulated, and a model is taken where the errors of both, by
    Cauchy's loss, fall by more than chance explains. So every track judges once, and
    which of them are together changes little. A lens that folds (see `is_plausible`) is
    none. Poses, points and principal points are those of the model that came in: what
    follows is `refine_model`.

    In models of more than 500 images a camera is asked in the first block of some 250
    (see `geometry.blocks`) that eight of its images are in: that tells a lens as well.

    Args:
        model: It stays as it is.
        known: Ids of cameras that are not asked.
        seed: Of which tracks are in which half.
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
    halves = Halves.of(model, seed)
    asked = {key for key in asked if halves.num_tracks(key) >= _MIN_TRACKS}
    held = cameras_in(model).keys() - asked
    first = {key: model.cameras[key].model for key in asked}
    best = halves.adjusted([{}, {}], held) if asked else None
    if best is None:
        return set()
    for step in range(max(map(len, _LADDERS.values()))):
        lenses = {
            key: _LADDERS[first[key]][step]
            for key in asked
            if step < len(_LADDERS[first[key]])
        }
        best = _with_those_that_gain(halves, best, lenses, held)
    for key in sorted(asked):
        camera = best[0].cameras[key]
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


def _with_those_that_gain(
    halves: Halves,
    best: list[pycolmap.Reconstruction],
    lenses: Mapping[int, pycolmap.CameraModelId],
    held: Collection[int],
) -> list[pycolmap.Reconstruction]:
    """The best two so far, or two in which some cameras have other lens models."""
    tried = _tried(halves, best, lenses, held)
    if tried is None:
        return best
    gained = _gained(halves, best, tried, lenses)
    if len(lenses) > 1 and len(gained) <= _MAX_ALONE:
        # a better lens of one camera makes points better that others see as well
        for key in sorted(gained):
            others = {k: lens for k, lens in lenses.items() if k != key}
            without = _tried(halves, best, others, held)
            if without is None or not _gained(halves, without, tried, [key]):
                gained.discard(key)
    if gained == lenses.keys():
        return tried
    kept = {key: lenses[key] for key in gained}
    return (_tried(halves, best, kept, held) or best) if kept else best


def _tried(
    halves: Halves,
    best: list[pycolmap.Reconstruction],
    lenses: Mapping[int, pycolmap.CameraModelId],
    held: Collection[int],
) -> list[pycolmap.Reconstruction] | None:
    """Both halves with other lens models; None where there is no solution."""
    return halves.adjusted(
        [
            _cameras(model)
            | {
                key: with_model(model.cameras[key], lens)
                for key, lens in lenses.items()
            }
            for model in best
        ],
        held,
    )


def _gained(
    halves: Halves,
    old: list[pycolmap.Reconstruction],
    new: list[pycolmap.Reconstruction],
    keys: Iterable[int],
) -> set[int]:
    """The cameras whose lens is one in both halves and fits clearly better."""
    before, after = halves.errors(old), halves.errors(new)
    return {
        key
        for key in keys
        if all(
            is_plausible(there.cameras[key], here.cameras[key])
            for there, here in zip(new, old, strict=True)
        )
        and halves.is_gain(before, after, key)
    }


def _cameras(model: pycolmap.Reconstruction) -> dict[int, pycolmap.Camera]:
    return dict(model.cameras.items())


@dataclass(frozen=True, kw_only=True, eq=False)
class Halves:
    """A model with one half of its tracks and with the other, each to judge the other.

    Observations are those that the first lacks, then those that the second lacks.
    """

    models: tuple[pycolmap.Reconstruction, ...]  # two
    left_out: tuple[Observations, ...]  # that each lacks
    track: Index  # [M] from 0, of the observations
    view: Index  # [M]
    camera_id: Index  # [M]

    @staticmethod
    def of(model: pycolmap.Reconstruction, seed: int) -> Halves:
        """Of a sample of the tracks that three images or more see."""
        arrays = ModelArrays.of(model)
        views, observations = arrays.views, arrays.observations
        random = np.random.default_rng(seed)
        long = observations.counts() >= _MIN_VIEWS
        all_of_them = max(observations.counts()[long].sum(), 1)
        wanted = len(views) * _PER_IMAGE
        wanted = max(min(wanted, _MANY), wanted // 2)
        drawn = long & (random.random(len(long)) < wanted / all_of_them)
        second = random.integers(2, size=len(long)) == 1
        models, left_out = [], []
        for kept, out in ((second, ~second), (~second, second)):
            rest = pycolmap.Reconstruction(model)
            for point_id in arrays.point_ids[~(drawn & kept)].tolist():
                rest.delete_point3D(point_id)
            models.append(rest)
            left_out.append(observations.select((drawn & out)[observations.point]))
        view = np.concatenate([each.view for each in left_out])
        of_view = np.array([camera.camera_id for camera in views.cameras], np.int64)
        first = left_out[0].num_points
        return Halves(
            models=tuple(models),
            left_out=tuple(left_out),
            track=np.concatenate([left_out[0].point, left_out[1].point + first]),
            view=view,
            camera_id=of_view[view],
        )

    def num_tracks(self, key: int) -> int:
        """How many of the tracks a camera sees."""
        return len(np.unique(self.track[self.camera_id == key]))

    def adjusted(
        self,
        cameras: Sequence[Mapping[int, pycolmap.Camera]],
        held: Collection[int],
    ) -> list[pycolmap.Reconstruction] | None:
        """Both with these cameras, adjusted; None where there is no solution.

        Cameras that are not named stay.
        """
        found = []
        for model, given in zip(self.models, cameras, strict=True):
            copy = pycolmap.Reconstruction(model)
            for key, camera in given.items():
                copy.cameras[key].model = camera.model
                copy.cameras[key].params = camera.params.tolist()
            try:
                adjust(copy, fixed=held, centres=True, tolerance=CHOICE_TOLERANCE)
            except ReconstructionError as error:
                logger.debug("no lens: %s", error)
                return None
            found.append(copy)
        return found

    def errors(self, models: Sequence[pycolmap.Reconstruction]) -> Float64:
        """Pixels [M] that the observations miss, triangulated where they were left out.

        Args:
            models: In the order of the halves.
        """
        found = []
        for model, seen in zip(models, self.left_out, strict=True):
            views = Views.of(model)
            ray = np.empty((len(seen), 3))
            for view, rows in enumerate(seen.by_view(len(views))):
                ray[rows] = views.rays(view, seen.xy[rows])
            seen = replace(seen, ray=ray)
            found.append(reprojection_errors(views, seen, triangulate(views, seen)))
        return np.concatenate(found)

    def is_gain(self, before: Float64, after: Float64, key: int) -> bool:
        """Whether the errors of a camera's tracks fall by more than chance explains."""
        share, deviations = self.gain(before, after, key)
        logger.debug("camera %d: gain %.4f, %.1f errors", key, share, deviations)
        return deviations > _MIN_DEVIATIONS and share > _MIN_GAIN

    def gain(
        self, before: Float64, after: Float64, key: int, *, by_image: bool = True
    ) -> tuple[float, float]:
        """By how much the errors of a camera's tracks fall.

        They count by Cauchy's loss, with a scale of those before. What one image sees
        errs together, and so does one track: the standard error is the larger of those
        over images and over tracks. Where only some images are to gain, `by_image` must
        be false: that they differ is no error then.

        Returns:
            The share of the loss that goes, and what goes in its standard errors.
        """
        own = self.camera_id == key
        scale = max(LOSS_SCALE * deviation_of(before[own], 2), 1e-3)
        old, new = (
            np.log1p(np.minimum(errors[own] / scale, _MAX_RATIO) ** 2)
            for errors in (before, after)
        )
        fall = float((old - new).sum())
        error = max(
            _error_of_sum(old - new, groups[own])
            for groups in ((self.view, self.track) if by_image else (self.track,))
        )
        return fall / max(float(old.sum()), 1e-12), fall / max(error, 1e-12)


def _error_of_sum(values: Float64, groups: Index) -> float:
    """The standard error of the sum of values, which belong to independent groups."""
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, values)
    return float(sums.std(ddof=1)) * len(sums) ** 0.5 if len(sums) > 1 else np.inf
