"""Metres, heading and place of a reconstruction, from the GPS of its photographs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.coords import beyond_rounding
from sfmprep.dataset.gravity import Upright, rotation_to_z
from sfmprep.errors import ReconstructionError
from sfmprep.types import Float64, Mask

Fit = Callable[[Float64, Float64], pycolmap.Sim3d | None]

MIN_POSITIONS = 3  # that fix a similarity
_NUM_SAMPLES = 500
_MAX_SIGMAS = 3.0  # between up by GPS and up without; beyond it GPS is believed
_MAX_SCALE_ERROR = 0.3  # relative standard deviation; above it GPS tells no scale
_GOOD_SCALE_ERROR = 0.05
_GOOD_POSITIONS = 6  # fewer leave too little over to tell how well they fit
_TIMES_BETTER = 3.0  # the map of exchanged coordinates is mirrored, and stretched
_ONE_SPOT_M = 1e-6  # what is left of the earth's radius in float64, and no GPS tells


@dataclass(frozen=True, kw_only=True)
class Georeference:
    """The transform to metres east, north and up of a point on the earth."""

    enu_from_sfm: pycolmap.Sim3d
    origin: tuple[float, float, float]  # latitude, longitude in degrees, altitude in m
    up: str  # how it was found, in words
    scale: str
    scale_error: float  # relative standard deviation
    num_positions: int  # that agree with each other
    is_exchanged: bool  # latitudes and longitudes fit in each other's places

    @property
    def is_good(self) -> bool:
        """Whether it can be used where nobody asked for it."""
        enough = self.num_positions >= _GOOD_POSITIONS and not self.is_exchanged
        return enough and self.scale_error <= _GOOD_SCALE_ERROR


@dataclass(frozen=True, kw_only=True, eq=False)
class _Alignment:
    """A fit of centres to positions, and what is left over."""

    enu_from_sfm: pycolmap.Sim3d
    near: Mask  # [N] positions that agree
    residuals: Float64  # [N, 3] metres


def georeference(
    model: pycolmap.Reconstruction, images: ImageSet, upright: Upright
) -> Georeference:
    """Fits the camera centres to the positions that the photographs carry.

    Wrong positions do no harm while they are less than half: least median of squares
    (Rousseeuw, JASA 1984), then least squares over what is near. Where the positions
    tell the vertical less well than `upright` does, as on a straight path or from a
    phone, `upright` is kept, and they tell heading, scale and place.

    Args:
        model: At least one image is registered.
        images: Their headers; the model's names are among them.
        upright: Up as found without GPS.

    Raises:
        ReconstructionError: fewer than three registered images have a position, or
            these are nearer together than GPS can tell apart.
    """
    registered = [model.image(k) for k in sorted(model.reg_image_ids())]
    infos = [images.infos[image.name] for image in registered]
    # Heights above the place of take-off do as well as altitudes, but not beside them.
    has_altitudes = sum(bool(i.gps and i.gps[2] is not None) for i in infos)
    only_heights = sum(
        bool(i.gps and i.gps[2] is None and i.height_m is not None) for i in infos
    )
    above_takeoff = has_altitudes < max(MIN_POSITIONS, only_heights / 2)
    located = [
        (image.projection_center(), gps, info.gps_accuracy_m)
        for image, info in zip(registered, infos, strict=True)
        if (gps := _place(info, above_takeoff=above_takeoff)) is not None
    ]
    if len(located) < MIN_POSITIONS:
        raise ReconstructionError(
            f"{len(located)} of {len(registered)} registered images have a GPS position"
            f" in their EXIF but georeferencing needs {MIN_POSITIONS}. Turn it off:"
            " export.world.georeference=false"
        )
    with_height = [entry for entry in located if entry[1][2] is not None]
    has_height = len(with_height) >= MIN_POSITIONS
    used = with_height if has_height else located
    centres = np.array([centre for centre, _, _ in used])
    earth = np.array([(lat, lon, alt or 0.0) for _, (lat, lon, alt), _ in used])
    origin, enu = _local(earth)
    accuracies = [a for _, _, a in used if a is not None]
    recorded_m = float(np.median(accuracies)) if 2 * len(accuracies) >= len(used) else 0

    alignment, up = _best_alignment(
        centres, enu, upright, recorded_m, has_height=has_height
    )
    is_exchanged = bool((np.abs(earth[:, 1]) <= 90).all()) and _fits_better(
        _best_alignment(
            *(centres, _local(earth[:, [1, 0, 2]])[1], upright, recorded_m),
            has_height=has_height,
        )[0],
        alignment,
    )
    near = enu[alignment.near]
    spread_m = _spread_m(near)
    noise_m = max(recorded_m, _noise_m(alignment, 4, dimensions=2))
    scale_error = noise_m / (spread_m * math.sqrt(len(near)))
    if scale_error > _MAX_SCALE_ERROR:
        raise ReconstructionError(
            f"the GPS positions of {len(near)} images are within {spread_m:.1f} m"
            f" (rms) of their middle but known to {noise_m:.1f} m only, which tells no"
            " scale. Turn georeferencing off: export.world.georeference=false"
        )
    return Georeference(
        enu_from_sfm=alignment.enu_from_sfm,
        origin=origin,
        up=up,
        scale=_describe(
            *(alignment, len(registered), scale_error),
            above_takeoff=above_takeoff,
            has_height=has_height,
        ),
        scale_error=scale_error,
        num_positions=int(alignment.near.sum()),
        is_exchanged=is_exchanged,
    )


def _place(
    info: ImageInfo, *, above_takeoff: bool
) -> tuple[float, float, float | None] | None:
    """Where an image was taken, with the altitude or the height above a take-off."""
    if info.gps is None or not above_takeoff:
        return info.gps
    return info.gps[0], info.gps[1], info.height_m


def transform_points(sim: pycolmap.Sim3d, points: Float64) -> Float64:
    """Applies a similarity transform to points [N, 3]; N may be 0."""
    matrix = sim.matrix()
    transformed: Float64 = points @ matrix[:, :3].T + matrix[:, 3]
    return transformed


def _local(earth: Float64) -> tuple[tuple[float, float, float], Float64]:
    """The middle of positions [N, 3], and each east, north and up of it in metres."""
    origin = _middle(earth)
    return origin, np.asarray(pycolmap.GPSTransform().ellipsoid_to_enu(earth, *origin))


def _middle(earth: Float64) -> tuple[float, float, float]:
    """The median position, found around one of them so that +-180 degrees is no gap."""
    around = earth[0, 1]
    longitudes = (earth[:, 1] - around + 180) % 360 - 180 + around
    longitude = (float(np.median(longitudes)) + 180) % 360 - 180
    return float(np.median(earth[:, 0])), longitude, float(np.median(earth[:, 2]))


# ------------------------------------------------------------------------- alignment
def _best_alignment(
    centres: Float64,
    enu: Float64,
    upright: Upright,
    recorded_m: float,
    *,
    has_height: bool,
) -> tuple[_Alignment, str]:
    """The fit whose up is known best, and how that was found, in words."""
    if has_height:
        free = _align(
            centres, enu, pycolmap.estimate_sim3d, sample_size=3, dimensions=3
        )
        if free is not None:
            tilt_deg = _tilt_error_deg(enu[free.near], free, recorded_m)
            up = free.enu_from_sfm.rotation.matrix()[2]
            apart_deg = math.degrees(math.acos(np.clip(up @ upright.direction, -1, 1)))
            allowed_deg = _MAX_SIGMAS * math.hypot(tilt_deg, upright.stddev_deg)
            if tilt_deg < upright.stddev_deg or apart_deg > allowed_deg:
                return free, f"GPS positions, which tell it to {tilt_deg:.1f} degrees"
    level = rotation_to_z(upright.direction)
    kept = _align(
        centres, enu, lambda c, e: _fit_level(c, e, level), sample_size=2, dimensions=2
    )
    if kept is None:
        raise ReconstructionError(
            f"the GPS positions of {len(enu)} images, or their cameras, are all on one"
            " spot, which tells no scale. Turn georeferencing off:"
            " export.world.georeference=false"
        )
    return kept, upright.how


def _fits_better(other: _Alignment, alignment: _Alignment) -> bool:
    """Whether one leaves so much less on the map that noise does not explain it."""
    if len(alignment.residuals) < _GOOD_POSITIONS:
        return False
    left, usual = (
        float(np.median(np.linalg.norm(each.residuals[:, :2], axis=1)))
        for each in (other, alignment)
    )
    return _TIMES_BETTER * left < usual


def _align(
    centres: Float64, enu: Float64, fit: Fit, *, sample_size: int, dimensions: int
) -> _Alignment | None:
    """The robust fit of [N, 3] to [N, 3], by the first `dimensions` coordinates.

    So few positions that half of them are no more than one sample are all used. None
    where positions or centres are degenerate.
    """
    near = np.ones(len(centres), np.bool_)
    if len(centres) <= 2 * sample_size:
        best = _valid(fit(centres, enu))
    else:
        best = _least_median(centres, enu, fit, sample_size, dimensions)
        for _ in range(5):
            if best is None:
                break
            errors = _errors(best, centres, enu, dimensions)
            # from the median of distances to a standard deviation (Rousseeuw, Leroy)
            stddev = 1.4826 * float(np.median(errors)) * (1 + 5 / len(errors))
            near = errors <= max(3 * stddev, np.sort(errors)[len(errors) // 2])
            best = _valid(fit(centres[near], enu[near]))
    if best is None:
        return None
    residuals = enu - transform_points(best, centres)
    return _Alignment(enu_from_sfm=best, near=near, residuals=residuals)


def _least_median(
    centres: Float64, enu: Float64, fit: Fit, sample_size: int, dimensions: int
) -> pycolmap.Sim3d | None:
    """The fit to a random sample whose median error over all positions is least."""
    rng = np.random.default_rng(0)
    best, least = None, math.inf
    for _ in range(_NUM_SAMPLES):
        sample = rng.choice(len(centres), sample_size, replace=False)
        candidate = _valid(fit(centres[sample], enu[sample]))
        if candidate is None:
            continue
        median = float(np.median(_errors(candidate, centres, enu, dimensions)))
        if median < least:
            best, least = candidate, median
    return best


def _valid(sim: pycolmap.Sim3d | None) -> pycolmap.Sim3d | None:
    """The transform; None in place of one that is not finite or shrinks to a point."""
    if sim is None or not np.isfinite(sim.matrix()).all() or sim.scale <= 0:
        return None
    return sim


def _errors(
    sim: pycolmap.Sim3d, centres: Float64, enu: Float64, dimensions: int
) -> Float64:
    residuals = (enu - transform_points(sim, centres))[:, :dimensions]
    errors: Float64 = np.linalg.norm(residuals, axis=1)
    return errors


def _fit_level(centres: Float64, enu: Float64, level: Float64) -> pycolmap.Sim3d | None:
    """Heading and scale by the horizontal positions, height by the mean; up is kept."""
    upright = centres @ level.T
    middle, enu_middle = upright.mean(axis=0), enu.mean(axis=0)
    here = (upright - middle)[:, :2] @ (1, 1j)
    there = (enu - enu_middle)[:, :2] @ (1, 1j)
    spread = beyond_rounding(float(np.linalg.norm(here)), centres)
    if not spread or np.linalg.norm(there) < _ONE_SPOT_M:
        return None
    turn = np.vdot(here, there) / spread**2  # a complex number turns and scales
    scale = float(np.abs(turn))
    if scale == 0:
        return None
    cosine, sine = turn.real / scale, turn.imag / scale
    heading = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return pycolmap.Sim3d(
        scale,
        pycolmap.Rotation3d(heading @ level),
        enu_middle - scale * heading @ middle,
    )


# -------------------------------------------------------------------------- accuracy
def _noise_m(alignment: _Alignment, parameters: int, *, dimensions: int) -> float:
    """The standard deviation of one coordinate by the residuals, metres."""
    left = alignment.residuals[alignment.near][:, :dimensions]
    return math.sqrt(float(np.sum(left**2)) / max(left.size - parameters, 1))


def _spread_m(enu: Float64) -> float:
    """The rms horizontal distance of positions from their mean, metres."""
    return math.sqrt(float(np.sum(np.var(enu[:, :2], axis=0))))


def _tilt_error_deg(enu: Float64, alignment: _Alignment, recorded_m: float) -> float:
    """How well positions tell the vertical; infinite where they are on a line."""
    noise_m = max(recorded_m, _noise_m(alignment, 7, dimensions=3))
    sides = np.linalg.svd(enu - enu.mean(axis=0), compute_uv=False)
    return math.degrees(noise_m / sides[1]) if sides[1] > 1e-6 * sides[0] else math.inf


def _describe(
    alignment: _Alignment,
    num_registered: int,
    scale_error: float,
    *,
    above_takeoff: bool,
    has_height: bool,
) -> str:
    left = alignment.residuals[alignment.near]
    horizontal = math.sqrt(float(np.mean(np.sum(left[:, :2] ** 2, axis=1))))
    vertical = math.sqrt(float(np.mean(left[:, 2] ** 2)))
    outliers = int((~alignment.near).sum())
    return (
        f"metres, by the GPS of {alignment.near.sum()} of {num_registered} images"
        + (f" ({outliers} others contradict them)" if outliers else "")
        + f", known to {100 * scale_error:.1f} %; residuals {horizontal:.2f} m"
        + (
            f" horizontal, {vertical:.2f} m vertical (rms)"
            if has_height
            else " horizontal (rms); no altitude, the origin's is 0"
        )
        + (
            "; heights are above the place of take-off, not the sea"
            if has_height and above_takeoff
            else ""
        )
    )
