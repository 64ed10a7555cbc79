"""The plain way of doing each job, which the benchmarks hold ours against.

kornia's modules, one image and one pair at a time; HDF5 with one group a pair, opened
for each as hloc does, or kept open; COLMAP's database filled in the loop that reads it.
The same weights, keypoints and thresholds as ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import torch
from kornia.feature import LightGlue as KorniaLightGlue
from kornia.feature import match_smnn
from kornia.feature.aliked import ALIKED as KorniaAliked
from kornia.feature.xfeat import XFeat as KorniaXFeat
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

Keypoints = dict[str, Tensor]  # xy [N, 2] (pixel centres at integers), descriptors
Pair = tuple[str, str]


def read_image(path: Path, max_size: int) -> Tensor:
    """One photograph as kornia's modules take it, [1, 3, H, W] in 0..1."""
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    height, width = pixels.shape[:2]
    scale = min(1.0, max_size / max(height, width))
    if scale < 1:
        size = (round(width * scale), round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def aliked(weights: Path, model: str, max_keypoints: int, device: str) -> KorniaAliked:
    """kornia's ALIKED with our thresholds."""
    network = KorniaAliked(model, max_num_keypoints=max_keypoints).eval()
    network.load_state_dict(load_file(weights / f"{model}.safetensors"), strict=False)
    return network.to(device)


def xfeat(weights: Path, max_keypoints: int, device: str) -> KorniaXFeat:
    """kornia's XFeat with our thresholds."""
    network = KorniaXFeat(max_keypoints, 0.05).eval()
    network.net.load_state_dict(load_file(weights / "xfeat.safetensors"))
    return network.to(device)


def lightglue(
    tensors: Mapping[str, Tensor] | None, device: str, **config: object
) -> KorniaLightGlue:
    """kornia's LightGlue; without `tensors` with random weights.

    `KorniaLightGlue.features` knows the shapes of published checkpoints only, so the
    shape comes in as `config`.
    """
    torch.manual_seed(0)
    network = KorniaLightGlue(features=None, **config).eval()
    if tensors is not None:
        network.load_state_dict(dict(tensors), strict=False)
    return network.to(device)


@torch.inference_mode()
def match_lightglue(
    network: KorniaLightGlue, pairs: Iterable[tuple[Keypoints, Keypoints]]
) -> list[Tensor]:
    """Matches [M, 2] of each pair, one call a pair."""
    found = []
    for side0, side1 in pairs:
        data = {f"image{k}": side for k, side in enumerate((side0, side1))}
        matches = network(data)["matches"][0]
        found.append(matches.cpu())
    return found


@torch.inference_mode()
def match_nearest(
    pairs: Iterable[tuple[Tensor, Tensor]], ratio: float
) -> list[NDArray[np.int64]]:
    """Mutual nearest neighbours with the ratio test, one call a pair."""
    return [match_smnn(a, b, ratio)[1].cpu().numpy() for a, b in pairs]


# ------------------------------------------------------------------------------ files
def write_group(file: h5py.File, pair: Pair, index: NDArray[np.int32]) -> None:
    """One group a pair, as hloc lays it out: a column of matches and one of scores."""
    group = file.create_group("/".join(name.replace("/", "-") for name in pair))
    group.create_dataset("matches0", data=index)
    group.create_dataset("scores", data=np.ones(len(index), np.float16))


def write_reopened(path: Path, items: Iterable[tuple[Pair, NDArray[np.int32]]]) -> None:
    """Opens and closes the file for every pair."""
    for pair, index in items:
        with h5py.File(path, "a", libver="latest") as file:
            write_group(file, pair, index)


def write_open(path: Path, items: Iterable[tuple[Pair, NDArray[np.int32]]]) -> None:
    """Keeps the file open, and flushes after every pair as a safe store must."""
    with h5py.File(path, "w") as file:
        for pair, index in items:
            write_group(file, pair, index)
            file.flush()


def _group(file: h5py.File, pair: Pair) -> NDArray[np.int32]:
    group = file["/".join(name.replace("/", "-") for name in pair)]
    group["scores"][:]
    found: NDArray[np.int32] = group["matches0"][:]
    return found


def read_reopened(path: Path, pairs: Iterable[Pair]) -> Iterator[NDArray[np.int32]]:
    """Opens and closes the file for every pair."""
    for pair in pairs:
        with h5py.File(path, "r") as file:
            yield _group(file, pair)


def read_open(path: Path, pairs: Iterable[Pair]) -> Iterator[NDArray[np.int32]]:
    """Keeps the file open."""
    with h5py.File(path, "r") as file:
        for pair in pairs:
            yield _group(file, pair)


def write_keypoints(path: Path, name: str, xy: NDArray[np.float32]) -> None:
    """Opens the file and writes the keypoints of one image as a group."""
    with h5py.File(path, "a", libver="latest") as file:
        file.create_group(name).create_dataset("keypoints", data=xy)


def _keypoints(path: Path, name: str) -> NDArray[np.float32]:
    with h5py.File(path, "r") as file:
        found: NDArray[np.float32] = file[name]["keypoints"][:]
    return found


# --------------------------------------------------------------------------- database
def import_matches(
    path: Path,
    sizes: Mapping[str, tuple[int, int]],
    features: Path,
    matches: Path,
    pairs: Iterable[Pair],
) -> None:
    """Fills a COLMAP database from files of groups, opened for every image and pair."""
    ids = {}
    with pycolmap.Database.open(path) as database:
        (size,) = set(sizes.values())
        camera = pycolmap.Camera.create_from_model_name(
            0, "SIMPLE_RADIAL", 1.2 * max(size), *size
        )
        camera.camera_id = database.write_camera(camera)
        for name in sizes:
            image = pycolmap.Image(name=name, camera_id=camera.camera_id)
            ids[name] = database.write_image(image)
            database.write_keypoints(ids[name], _keypoints(features, name))
        found = zip(pairs, read_reopened(matches, pairs), strict=True)
        for (name0, name1), index in found:
            database.write_matches(ids[name0], ids[name1], index.astype(np.uint32))
