"""Focal lengths in EXIF that were not used, or that the photographs contradict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.mapping.cameras import first_model, is_known
from sfmprep.mapping.database import open_database
from sfmprep.mapping.focal_length import is_fisheye
from sfmprep.mapping.focal_priors import exif_focal_length
from sfmprep.report.schema import Finding

_APART = 1.3  # focal lengths that differ by more contradict each other
_ALIKE = 1.01  # ratio of focal lengths: cameras that were split and end so near are one
_MAX_NAMES = 10


def doubtful_focal_lengths(
    images: ImageSet,
    config: DatabaseConfig,
    database: Path | None,
    models: Sequence[pycolmap.Reconstruction],
) -> list[Finding]:
    """What EXIF tells of focal lengths and cannot be, or the largest model contradicts.

    Args:
        images: The capture.
        config: What is known of its cameras; these are not asked.
        database: With the cameras before mapping; None: nothing is contradicted.
        models: Largest first; may be empty.
    """
    refused: dict[str, str] = {}
    doubted: list[str] = []
    for group in images.camera_groups(config.cameras):
        if not is_known(config, group[0]):
            model = first_model(config, images.infos[group[0]])
            blank = pycolmap.Camera.create_from_model_name(0, model, 1, 1, 1)
            prior = exif_focal_length(images, group[0], is_fisheye=is_fisheye(blank))
            if prior.doubt:
                refused[group[0]] = prior.doubt
                doubted += group
    found = []
    if refused:
        (first, doubt), *others = refused.items()
        more = f" So it is with {_counted(len(others), 'other camera')}."
        found.append(
            Finding(
                code="exif_refused",
                text=f"{first}: {doubt}. It was not used.{more if others else ''}",
                advice="The focal length was looked for in the matches. If it is known:"
                " --set database.focal_length=PIXELS",
                images=doubted[:_MAX_NAMES],
            )
        )
    if database is not None and models:
        found += _contradicted(config, database, models[0])
    if models:
        found += _zooms(images, config, models[0])
    return found


def _zooms(
    images: ImageSet, config: DatabaseConfig, model: pycolmap.Reconstruction
) -> Iterator[Finding]:
    """Cameras that became several, because some photographs were zoomed."""
    own = {
        model.images[k].name: model.cameras[model.images[k].camera_id]
        for k in model.reg_image_ids()
    }
    for group in images.camera_groups(config.cameras):
        here = [name for name in group if name in own]
        counts = Counter(own[name].camera_id for name in here)
        if len(counts) < 2 or is_known(config, group[0]):
            continue
        ((most, _),) = counts.most_common(1)
        usual = model.cameras[most].mean_focal_length()
        others = [
            name
            for name in here
            if not 1 / _ALIKE < own[name].mean_focal_length() / usual < _ALIKE
        ]
        if not others:
            continue
        focal = own[others[0]].mean_focal_length()
        yield Finding(
            code="two_zooms",
            text=f"{_counted(len(others), 'photograph')} of {len(here)} that seemed to"
            " be of one camera have a focal length of their own, such as"
            f" {others[0]}, with {focal:.0f} px for {usual:.0f} px: the zoom was moved"
            " in between, or the focus. In the model they have a camera of their own.",
            advice="If that is not so: --set database.focal_length=PIXELS",
            images=others[:_MAX_NAMES],
        )


def _contradicted(
    config: DatabaseConfig, database: Path, model: pycolmap.Reconstruction
) -> list[Finding]:
    with open_database(database) as opened:
        cameras = {camera.camera_id: camera for camera in opened.read_all_cameras()}
        told = {
            image.name: cameras[image.camera_id].mean_focal_length()
            for image in opened.read_all_images()
            if cameras[image.camera_id].has_prior_focal_length
            and not is_known(config, image.name)
        }
    own = {
        model.images[k].name: model.cameras[model.images[k].camera_id]
        for k in model.reg_image_ids()
    }
    apart = Counter(
        (round(told[name]), round(camera.mean_focal_length()))
        for name, camera in sorted(own.items())
        if name in told
        and not 1 / _APART <= camera.mean_focal_length() / told[name] <= _APART
    )
    if not apart:
        return []
    ((exif, fits), count), *_ = apart.most_common()
    names = [
        name
        for name, camera in sorted(own.items())
        if name in told
        and (round(told[name]), round(camera.mean_focal_length())) in apart
    ]
    return [
        Finding(
            code="exif_contradicted",
            text=f"EXIF tells a focal length of {exif} px for"
            f" {_counted(count, 'photograph')}, but {fits} px fit them and were used"
            + (
                f"; it is contradicted for {len(names)} photographs in all."
                if len(names) > count
                else "."
            ),
            advice="Cropped or resized photographs and wrong EXIF cause this. If the"
            " focal length is known: --set database.focal_length=PIXELS",
            images=names[:_MAX_NAMES],
        )
    ]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count > 1 else "")
