"""Which image a pose is of, where a file calls it otherwise than the capture."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

from sfmprep.errors import ConfigError
from sfmprep.known_poses.poses import KnownPoses

logger = logging.getLogger(__name__)


def of_images(poses: KnownPoses, names: Sequence[str], where: str) -> KnownPoses:
    """The poses of the images of a capture, under the names that these have there.

    A name is that of an image if it is the same; else if the file names are the same,
    and no other is; else if they are so but for their suffix, or are the same number.
    What has no partner is told in the log.

    Args:
        poses: As they were read.
        names: The images, POSIX paths relative to their folder.
        where: The file of the poses, for messages.

    Raises:
        ConfigError: no pose is of an image.
    """
    partner = {name: name for name in poses.names if name in set(names)}
    for key in (_file_name, _stem, _number):
        left = [name for name in poses.names if name not in partner]
        free = set(names) - set(partner.values())
        partner |= _unique_partners(left, sorted(free), key)
    if not partner:
        raise ConfigError(
            f"poses {where}: none of them is of an image here: they are of"
            f" {_some(poses.names)}, the images are {_some(names)}. Give the poses of"
            " these images, with the same file names."
        )
    lost = [name for name in poses.names if name not in partner]
    if lost:
        logger.warning(
            "%d of %d poses are of no image here, such as %s",
            *(len(lost), len(poses), lost[0]),
        )
    without = sorted(set(names) - set(partner.values()))
    if without:
        logger.warning(
            "%d of %d images have no given pose, such as %s: they get one by what they"
            " show",
            *(len(without), len(names), without[0]),
        )
    order = {name: k for k, name in enumerate(names)}
    ordered = sorted(partner.items(), key=lambda pair: order[pair[1]])
    return poses.chosen(dict(ordered))


def _unique_partners(
    left: Iterable[str], free: Iterable[str], key: Callable[[str], str]
) -> dict[str, str]:
    """Poses and images of which one each has a key."""
    ours: defaultdict[str, list[str]] = defaultdict(list)
    theirs: defaultdict[str, list[str]] = defaultdict(list)
    for name in free:
        ours[key(name)].append(name)
    for name in left:
        theirs[key(name)].append(name)
    return {
        found[0]: ours[k][0]
        for k, found in theirs.items()
        if len(found) == 1 and len(ours[k]) == 1
    }


def _file_name(name: str) -> str:
    return PurePosixPath(name).name


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _number(name: str) -> str:
    stem = PurePosixPath(name).stem
    return str(int(stem)) if stem.isdecimal() else stem


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
