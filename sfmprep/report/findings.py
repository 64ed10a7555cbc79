"""What a person should look at, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sfmprep.capture.developed import Film
from sfmprep.geometry.parallax import MIN_PARALLAX_DEG
from sfmprep.report.schema import (
    CameraReport,
    Consistency,
    Contradiction,
    Finding,
    ImageReport,
    LookAlike,
    OtherModel,
    Residuals,
    Result,
    ViewGraph,
    ViewPair,
    WeakLink,
)
from sfmprep.report.sections import count

_FEW_DEGREES = 10  # a film of a camera that turns on a tripod gives 9, a walk 18 to 46
_THIN_MATCHES = 150  # between two parts of a capture
_WEAK_IMAGE_MATCHES = 60  # between one or two images and all others
_FEW_POINTS = 50
# below the first, training is pointless; below the second, it is worth a look
_MIN_IMAGES = (5, 20)
_MIN_MODEL_POINTS = (500, 1000)
_MIN_ANGLE_DEG = (2.0, 4.0)  # COLMAP drops points below 1.5
_BAD_COVERAGE = 0.15
_BLURRED_SHARE = 0.25  # of the median number of keypoints
_LARGE_ERROR_PX = 1.5  # of what the features saw, as all errors here
_USUAL_ERROR_PX = (0.3, 1.0)
_LEFTOVER_PX = 0.5
_FIELD_OF_VIEW_DEG = (8.0, 125.0)
_CENTRE_SHARE = 0.05  # of the longer side
_SHARP = 0.75  # of the contrast of others: a shake of 4 pixels of 1600
_MAX_NAMES = 10
_NAMED_SOFT = 5


def list_findings(
    images: Sequence[ImageReport],
    *,
    result: Result | None,
    cameras: Sequence[CameraReport],
    graph: ViewGraph | None,
    links: Sequence[WeakLink],
    contradictions: Sequence[Contradiction],
    residuals: Residuals | None,
    others: Sequence[OtherModel] = (),
    scale: float = 1.0,
    films: Sequence[Film] = (),
    consistency: Consistency | None = None,
) -> list[Finding]:
    """Everything that deserves a warning, most important first.

    What makes training pointless comes before the rest. `scale` is how many pixels of
    the files one of what the features saw is; thresholds in pixels follow it.
    """
    found: list[Finding] = []
    found += _of_parts(images, result, graph, others)
    if result is not None:
        found += _of_parallax(result, graph)
        found += _of_floors(result, images)
        found += _of_thin_cuts(result, links)
        found += _of_look_alikes(consistency)
        found += _of_contradictions(contradictions)
        found += _of_cameras(cameras, scale)
        found += _of_errors(residuals, scale)
    found += _of_images(images)
    found += _of_sharpness(images, films)
    found += [
        Finding(code="film", text=remark.text, advice=remark.advice)
        for film in films
        for remark in film.remarks()
    ]
    return sorted(found, key=lambda finding: not finding.blocks_training)


def below_floors(num_images: int, num_points: int) -> str:
    """Why a model is too small to be trained on; empty where it is not."""
    if num_images < _MIN_IMAGES[0]:
        return f"fewer than {_MIN_IMAGES[0]} photographs"
    if num_points < _MIN_MODEL_POINTS[0]:
        return f"fewer than {_MIN_MODEL_POINTS[0]} points"
    return ""


def _of_parts(
    images: Sequence[ImageReport],
    result: Result | None,
    graph: ViewGraph | None,
    others: Sequence[OtherModel],
) -> Iterator[Finding]:
    advice = (
        "Take photographs that lead from one part to the other, a small step apart."
    )
    folders = [other.folder for other in others if other.folder]
    if result is not None and len(result.model_sizes) > 1:
        yield Finding(
            code="several_models",
            text=f"The capture fell into {len(result.model_sizes)} models of"
            f" {_listed(result.model_sizes)} images that do not share a frame."
            f" {_joined(others)}{_where(folders)}",
            advice=f"If they should be one, {advice[0].lower()}{advice[1:]}",
            images=[i.name for i in images if i.model == 1][:_MAX_NAMES],
        )
    elif graph is not None and len(graph.part_sizes) > 1:
        yield Finding(
            code="parts",
            text=f"No matches connect the {len(graph.part_sizes)} parts of the capture,"
            f" of {_listed(graph.part_sizes)} images.",
            advice=advice,
        )


def _joined(others: Sequence[OtherModel]) -> str:
    """What there is between the two largest models, a sentence; "" if not known."""
    link = others[0].strongest_link if others else None
    if link is None:
        return ""
    return (
        f"{count(others[0].num_links, 'pair')} such as {link.name0} and {link.name1}"
        " between the two largest cannot tell how one lies in the other. "
    )


def _of_thin_cuts(result: Result, links: Sequence[WeakLink]) -> Iterator[Finding]:
    thin = next((k for k in links if _is_thin_split(k, result)), None)
    if thin is not None:
        halves = 3 * thin.num_images > result.num_registered
        yield Finding(
            code="thin_cut",
            text=f"{'The two halves' if halves else 'Two parts'} of this capture"
            f" ({thin.num_images} and {result.num_registered - thin.num_images} images)"
            f" share only {thin.num_matches} matches, in"
            f" {count(thin.num_pairs, 'pair')} of images such as {thin.pair.name0} and"
            f" {thin.pair.name1}. They may be turned or scaled against each other.",
            advice="Check the 3D view for doubled surfaces. Take photographs between"
            " these two.",
            images=thin.images,
        )
    loose = [
        link
        for link in links
        if link.num_images < _min_side(result)
        and link.num_matches < _WEAK_IMAGE_MATCHES
    ]
    if loose:
        names = list(dict.fromkeys(name for link in loose for name in link.images))
        yield Finding(
            code="loose_images",
            text=f"{count(len(names), 'image')} hang{'s' * (len(names) == 1)} on by"
            f" fewer than {_WEAK_IMAGE_MATCHES} matches, {loose[0].num_matches} in the"
            " worst case: the pose is uncertain.",
            advice="Check them in the 3D view; leave them out where they look wrong.",
            images=names[:_MAX_NAMES],
        )


def _is_thin_split(link: WeakLink, result: Result) -> bool:
    return link.num_images >= _min_side(result) and link.num_matches < _THIN_MATCHES


def _min_side(result: Result) -> int:
    return min_side_of_split(result.num_registered)


def min_side_of_split(num_registered: int) -> int:
    """Fewest images on one side for a cut to be called a split of the capture."""
    return max(3, num_registered // 10)


def _of_parallax(result: Result, graph: ViewGraph | None) -> Iterator[Finding]:
    angle, parallax = result.median_angle_deg, result.median_parallax_deg
    advice = "Walk sideways between photographs; do not turn on the spot."
    unsure = "where the camera only turned, poses and points cannot be trusted."
    if parallax is not None and parallax < MIN_PARALLAX_DEG:
        yield Finding(
            code="little_parallax",
            text="A camera that turns on the spot would see half of this capture to"
            f" within {parallax:.2f} degrees: {unsure}",
            advice=advice,
            blocks_training=True,
        )
    # flat walls look like turns in pairs, so the model's rays must be narrow too
    elif (
        graph and 2 * graph.num_rotation_only > graph.num_pairs and angle < _FEW_DEGREES
    ):
        yield Finding(
            code="little_parallax",
            text=f"{graph.num_rotation_only} of {graph.num_pairs} verified pairs show"
            " no parallax, and half of the points are seen within"
            f" {angle:.1f} degrees: {unsure}",
            advice=advice,
            blocks_training=True,
        )
    elif angle < _MIN_ANGLE_DEG[1]:
        yield Finding(
            code="narrow_angles",
            text=f"Half of the points are seen within {angle:.1f} degrees: the camera"
            " hardly moved for its distance from the scene, so depth is uncertain.",
            advice=advice,
            blocks_training=angle < _MIN_ANGLE_DEG[0],
        )


def _of_floors(result: Result, images: Sequence[ImageReport]) -> Iterator[Finding]:
    if result.num_dataset < _MIN_IMAGES[1]:
        yield Finding(
            code="few_images",
            text=f"The dataset has {count(result.num_dataset, 'photograph')}: a splat"
            " looks right only from near where they were taken.",
            advice=f"Take {_MIN_IMAGES[1]} or more, a step apart, from all sides that"
            " are to be seen.",
            blocks_training=result.num_dataset < _MIN_IMAGES[0],
        )
    num_points = result.num_dataset_points
    if num_points is None:
        num_points = result.num_points
    if num_points < _MIN_MODEL_POINTS[1]:
        yield Finding(
            code="few_model_points",
            text=f"There {'is' if num_points == 1 else 'are'}"
            f" {count(num_points, '3D point')} to start training from; some thousands"
            " are usual.",
            advice="Take sharper or larger photographs, or look for more in them:"
            " --set features.max_keypoints=8192, or --recipe textureless.",
            blocks_training=num_points < _MIN_MODEL_POINTS[0],
        )
    seen = [i.num_points for i in images if i.status == "registered"]
    if seen and (median := float(np.median(seen))) < _FEW_POINTS:
        yield Finding(
            code="loose_poses",
            text="Half of the photographs see no more than"
            f" {count(round(median), 'point')} of the model: their poses rest on too"
            " little.",
            advice="Let neighbours share two thirds of what they show.",
            blocks_training=True,
        )


def _of_look_alikes(consistency: Consistency | None) -> Iterator[Finding]:
    if consistency is None:
        return
    if consistency.overlaid:
        pair = consistency.overlaid[0].pair
        yield Finding(
            code="overlaid",
            text="Places that look alike lie on each other:"
            f" {count(consistency.num_overlaid, 'pair')} of images such as"
            f" {pair.name0} and {pair.name1} fit the poses, but much of what each shows"
            " is missing in the other. The poses of one of the places are wrong.",
            advice="Take photographs of what tells the places apart, with a step"
            " between them from one to the other, or leave one of the places out.",
            blocks_training=True,
            images=_images_of(consistency.overlaid),
        )
    if consistency.broken:
        pair = consistency.broken[0]
        yield Finding(
            code="broken_order",
            text=f"{count(len(consistency.broken), 'pair')} of photographs in a row,"
            f" such as {pair.name0} and {pair.name1}, match well, but the poses put"
            " them where they cannot. A stretch of the row may lie on a place that"
            " looks like its own.",
            advice="Check in the 3D view that the cameras stand in the order of the"
            " walk.",
            images=_names_of(consistency.broken),
        )
    if consistency.left_out:
        strongest = consistency.left_out[0]
        pair = strongest.pair
        why = "much of what each shows is missing in the other"
        if strongest.loop_deg is not None:
            why = "other pairs lead from one to the other another way"
        yield Finding(
            code="look_alikes",
            text=f"{count(consistency.num_left_out, 'pair')} of images such as"
            f" {pair.name0} and {pair.name1} match with"
            f" {pair.num_inliers} matches, but show different places that look alike:"
            f" {why}. They were left out of the mapping.",
            advice="Check in the 3D view that each place stands where it should.",
            images=_images_of(consistency.left_out),
        )


def _images_of(pairs: Sequence[LookAlike]) -> list[str]:
    return _names_of([each.pair for each in pairs])


def _names_of(pairs: Sequence[ViewPair]) -> list[str]:
    names = [name for pair in pairs for name in (pair.name0, pair.name1)]
    return list(dict.fromkeys(names))[:_MAX_NAMES]


def _of_contradictions(contradictions: Sequence[Contradiction]) -> Iterator[Finding]:
    if not contradictions:
        return
    pair = contradictions[0].pair
    yield Finding(
        code="contradicting_pairs",
        text=f"{count(len(contradictions), 'pair')} of images match well but"
        f" contradict the poses, such as {pair.name0} and {pair.name1} with"
        f" {pair.num_inliers} matches: the scene may have parts that look alike, or one"
        " of the images has a wrong pose.",
        advice="Look at the pairs below and at the 3D view for surfaces on top of each"
        " other. Leaving pairs of distant photographs out helps (pairs.type:"
        " sequential for films).",
        images=list(
            dict.fromkeys(
                n for c in contradictions for n in (c.pair.name0, c.pair.name1)
            )
        )[:_MAX_NAMES],
    )


def _of_cameras(cameras: Sequence[CameraReport], scale: float) -> Iterator[Finding]:
    narrow, wide = _FIELD_OF_VIEW_DEG
    for camera in cameras:
        label = f"Camera {camera.camera_id} ({camera.width} x {camera.height})"
        angle = camera.field_of_view_deg
        fisheye = "FISHEYE" in camera.model
        if not fisheye and not narrow <= angle <= wide:
            yield Finding(
                code="focal_length",
                text=f"{label} came out with a field of view of {angle:.0f} degrees"
                f" (focal length {camera.focal_length_px:.0f} px), which few lenses"
                " have: the poses are probably bent.",
                advice="Give the focal length if it is known: --set"
                " database.focal_length=PIXELS",
            )
        off = float(np.hypot(*camera.principal_point_offset_px))
        if off > _CENTRE_SHARE * max(camera.width, camera.height):
            yield Finding(
                code="principal_point",
                text=f"The optical axis of {label.lower()} lies {off:.0f} px from the"
                " middle of the image: the photographs may be cropped, or the"
                " calibration is wrong.",
                advice="Use photographs that are not cropped, or keep it in the middle:"
                " --set mapping.refine_principal_point=never",
            )
        left = camera.residuals.leftover_px
        if left > _LEFTOVER_PX * scale:
            yield Finding(
                code="leftover_distortion",
                text=f"{label} has {left:.2f} px of lens distortion that its model"
                f" {camera.model} does not describe; it blurs the trained scene.",
                advice="Use a model with more parameters: --set"
                f" database.camera_model={'OPENCV_FISHEYE' if fisheye else 'OPENCV'}",
            )


def _of_errors(residuals: Residuals | None, scale: float) -> Iterator[Finding]:
    if residuals is not None and residuals.mean_px > _LARGE_ERROR_PX * scale:
        low, high = (usual * scale for usual in _USUAL_ERROR_PX)
        yield Finding(
            code="large_error",
            text=f"Points are {residuals.mean_px:.2f} px from where they should be on"
            f" average; {low:.1f} to {high:.1f} is usual.",
            advice="Moving things, rolling shutter or a zoom lens cause this. Mask what"
            " moves; let images have their own camera where the zoom changed (--set"
            " database.cameras=per-image).",
        )


def _of_images(images: Sequence[ImageReport]) -> Iterator[Finding]:
    known = [i.num_keypoints for i in images if i.num_keypoints is not None]
    median = float(np.median(known)) if known else 0.0

    def blurred(image: ImageReport) -> bool:
        found = image.num_keypoints
        return found is not None and found < _BLURRED_SHARE * median

    cases: tuple[tuple[str, Callable[[ImageReport], bool], str, str], ...] = (
        (
            "unreadable",
            lambda i: i.status == "unreadable",
            "Cannot be used",
            "The reasons are below; copy what is damaged from the camera again.",
        ),
        (
            "outliers",
            lambda i: i.status == "outlier",
            "Left out of the dataset because the pose is not supported",
            "The reasons are below; nothing needs to be done.",
        ),
        (
            "blurred",
            blurred,
            f"Less than a quarter of the usual number of keypoints ({median:,.0f}), so"
            " blurred, dark, or a blank surface",
            "Take them again, sharper, or leave them out.",
        ),
        (
            "few_points",
            lambda i: i.model == 0 and i.num_points < _FEW_POINTS,
            f"Fewer than {_FEW_POINTS} points of the model are seen, a weak pose",
            "Take more photographs near them.",
        ),
        (
            "bad_coverage",
            lambda i: i.model == 0 and (i.coverage or 0) < _BAD_COVERAGE,
            f"Points on less than {_BAD_COVERAGE:.0%} of the area, so the rest is seen"
            " by no other image, or has no texture",
            "Let neighbours share two thirds of what they show.",
        ),
    )
    for code, applies, what, advice in cases:
        names = [image.name for image in images if applies(image)]
        if names:
            yield Finding(
                code=code,
                text=f"{what}: {len(names)} of {count(len(images), 'image')}.",
                advice=advice,
                images=names[:_MAX_NAMES],
            )


def _of_sharpness(
    images: Sequence[ImageReport], films: Sequence[Film]
) -> Iterator[Finding]:
    """Blurred photographs, the worst first, by what others show of the same."""
    known = [(i.sharpness, i.name) for i in images if i.sharpness is not None]
    soft = sorted((share, name) for share, name in known if share < _SHARP)
    if not soft:
        return
    named = [f"{name} ({int(100 * share)}%)" for share, name in soft[:_NAMED_SOFT]]
    if more := len(soft) - len(named):
        named.append(f"{more} more, see sharpness in report.json")
    frames = {name for film in films for shot in film.shots() for name in shot}
    advice = []
    if any(name not in frames for _, name in soft):
        advice.append(
            "Move photographs out of the folder and run the same command again, or keep"
            " those that alone show something."
        )
    if any(name in frames for _, name in soft):
        advice.append(
            "Frames of a film cannot be taken out one by one: film again, slower or in"
            " more light, if the splat is not sharp."
        )
    yield Finding(
        code="shaken",
        text=f"Shaken or out of focus: {len(soft)} of the"
        f" {count(len(known), 'photograph')} that can be compared. Of the contrast of"
        f" the finest details that others show there, less than {_SHARP:.0%} is left:"
        f" {', '.join(named)}. A splat learns the blur too.",
        advice=" ".join(advice),
        images=[name for _, name in soft[:_MAX_NAMES]],
    )


def _where(folders: Sequence[str]) -> str:
    """Where the datasets of several models are."""
    if not folders:
        return "Only the first is in the dataset."
    further = "a further one is" if len(folders) == 1 else "further ones are"
    more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    return f"The first is the dataset; {further} in {', '.join(folders[:3])}{more}."


def _listed(sizes: Sequence[int]) -> str:
    *most, last = [str(size) for size in sizes[:_MAX_NAMES]]
    if len(sizes) > _MAX_NAMES:
        return f"{', '.join([*most, last])} and fewer"
    return f"{', '.join(most)} and {last}"
