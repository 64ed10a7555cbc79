"""Weights of networks: where they come from, under which licence, and whether intact.

`resolve_weights` looks, in this order, at
    1. the path that a recipe names,
    2. this package, which holds the weights of the project's own training,
    3. `$SFMPREP_WEIGHTS/<name>.safetensors`,
    4. the cache, `$XDG_CACHE_HOME/sfmprep/weights` (default `~/.cache/...`),
    4. the official download where there is one, unless `SFMPREP_OFFLINE=1`.
Checksums are checked wherever one is known and always returned, for the stores.
Sources of the checksums: the authors' repositories and COLMAP's and kornia's tables.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import pickle
import shutil
import textwrap
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfmprep.errors import WeightsError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_TIMEOUT_S = 20
_CHUNK = 1 << 20
_MAX_REASON = 240  # of characters; torch lists every tensor that differs


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One checkpoint that sfmprep can use."""

    name: str
    url: str | None  # the authors' own file; None where nobody may hand it on
    sha256: str | None  # of the file behind `url`; None where none was published
    converted_sha256: str | None  # of the same tensors as safetensors
    licence: str
    origin: str  # whose it is


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """A file on disk and its checksum."""

    name: str
    path: Path
    sha256: str


_ALIKED = "https://github.com/Shiaoming/ALIKED/raw/main/models"
_XFEAT = "https://github.com/verlab/accelerated_features/raw/main/weights"
_LIGHTGLUE = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv"

_LOFTR = "https://huggingface.co/kornia/loftr/resolve/main"


def _aliked(name: str, sha256: str, converted: str) -> Weights:
    return Weights(
        name=name,
        url=f"{_ALIKED}/{name}.pth",
        sha256=sha256,
        converted_sha256=converted,
        licence="BSD-3-Clause",
        origin="Shiaoming/ALIKED",
    )


def _lightglue(features: str, sha256: str | None) -> Weights:
    return Weights(
        name=f"{features}-lightglue",
        url=f"{_LIGHTGLUE}/{features}_lightglue.pth",
        sha256=sha256,
        converted_sha256=None,
        licence="Apache-2.0",
        origin="cvg/LightGlue",
    )


def _ours(name: str) -> Weights:
    return Weights(
        name=name,
        url=None,
        sha256=None,
        converted_sha256=None,
        licence="Apache-2.0",
        origin="sfmprep",
    )


def _loftr(name: str, file: str, sha256: str) -> Weights:
    """The copy of kornia; the checksum was recorded by several users of these files."""
    return Weights(
        name=name,
        url=f"{_LOFTR}/{file}",
        sha256=sha256,
        converted_sha256=None,
        licence="Apache-2.0",
        origin="zju3dv/LoFTR",
    )


WEIGHTS: Mapping[str, Weights] = {
    weights.name: weights
    for weights in (
        _aliked(
            "aliked-t16",
            "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085",
            "65db62f0a7160dd640efb1052bccaadc0aa29585596205c0893b2df776cea5d2",
        ),
        _aliked(
            "aliked-n16",
            "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2",
            "be06a1a91207c6022e38de91a6b3c2e8205065f3183f2d485d57383edfdc5834",
        ),
        _aliked(
            "aliked-n16rot",
            "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332",
            "3719d8d1c01d9513dd32906a9ad0e2f9bbe93a24c73ff25d77bae8122d1490c1",
        ),
        _aliked(
            "aliked-n32",
            "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890",
            "65dffb321c4299efc021b2434588676d2c0ef234ed6edd08776b2b2d402f2459",
        ),
        Weights(
            name="xfeat",
            url=f"{_XFEAT}/xfeat.pt",
            sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
            converted_sha256=(
                "9e89ca7b3b043fb8604fbcdc76364e69c391f48499d1d9eb21fff21042229d02"
            ),
            licence="Apache-2.0",
            origin="verlab/accelerated_features",
        ),
        Weights(
            name="lighterglue",
            url=f"{_XFEAT}/xfeat-lighterglue.pt",
            sha256="766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
            converted_sha256=(
                "b5a9f22ea61ec2484fcab4b6408fb641f44e52b68a7cfc34f702db1606983285"
            ),
            licence="Apache-2.0",
            origin="verlab/accelerated_features",
        ),
        Weights(
            name="lighterglue-l3",
            url=f"{_XFEAT}/xfeat-lighterglue.pt",
            sha256="766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
            converted_sha256=(
                "2dc32922285f11adffca539f6a1a88972f1d610911270e97d2a3e1a0dea26fc2"
            ),
            licence="Apache-2.0",
            origin="verlab/accelerated_features",
        ),
        Weights(
            name="disk",
            url="https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth",
            sha256="9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
            converted_sha256=None,
            licence="Apache-2.0",
            origin="cvlab-epfl/disk",
        ),
        _lightglue(
            "aliked",
            "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        ),
        _lightglue(
            "superpoint",
            "6ff7040d0a497fc6639337946d7538dae07428c18f77a067a0b5a960e7cc551a",
        ),
        _lightglue(
            "disk", "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335"
        ),
        _lightglue("sift", None),
        _loftr(
            "loftr-outdoor",
            "loftr_outdoor.ckpt",
            "21f5bec5968178e8bc8b7633441836fe5de4f47d861dd2cd7dc38e271b0479ec",
        ),
        _loftr(
            "loftr-indoor",
            "loftr_indoor_ds_new.ckpt",
            "be9ff88b323ec27889114719f668ae41aff7034b56a4c4acbd46b8b180b87ed3",
        ),
        _ours("compact"),
        _ours("compact-lightglue"),
        Weights(
            name="s2ld",
            url=None,
            sha256=None,
            converted_sha256=None,
            licence="not stated",
            origin="Merical/S2LD",
        ),
    )
}


def weights_here(name: str, path: Path | None = None) -> ResolvedWeights | None:
    """The weights as they are on this machine, or None; never asks the network.

    Raises:
        WeightsError: a file is there, but it is not the expected one, or
            SFMPREP_WEIGHTS names no folder.
    """
    entry = WEIGHTS[name]
    if path is not None:
        if not path.is_file():
            raise WeightsError(
                f"weights of {name}: the recipe names {path}, which is not a file."
                " Correct the path or remove the key `weights`."
            )
        return ResolvedWeights(name=name, path=path, sha256=file_sha256(path))
    packaged = Path(__file__).with_name(f"{name}.safetensors")
    if packaged.is_file():
        return ResolvedWeights(name=name, path=packaged, sha256=file_sha256(packaged))
    if folder := os.environ.get("SFMPREP_WEIGHTS"):
        if not Path(folder).is_dir():
            raise WeightsError(
                f"SFMPREP_WEIGHTS names {folder}, which is not a folder. Correct or"
                " unset it."
            )
        local = Path(folder) / f"{name}.safetensors"
        if local.is_file():
            return _checked(entry, local, entry.converted_sha256)
    if entry.url is None:
        return None
    cached = _cache_path(entry, entry.url)
    return _checked(entry, cached, entry.sha256) if cached.is_file() else None


def resolve_weights(name: str, path: Path | None = None) -> ResolvedWeights:
    """Finds weights by name, downloading the official file where none is here.

    Args:
        name: A key of `WEIGHTS`.
        path: A file to use in place of the named weights.

    Raises:
        WeightsError: the weights are not here and cannot be had, or are damaged.
    """
    return weights_here(name, path) or _download(WEIGHTS[name])


def load_tensors(weights: ResolvedWeights) -> dict[str, torch.Tensor]:
    """Reads the tensors of a safetensors file or of a torch checkpoint.

    Of a checkpoint only tensors are unpickled (`weights_only`); nested dictionaries
    such as DISK's `{"extractor": {...}}` are returned with dotted keys.

    Raises:
        WeightsError: the file is neither, or is damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if weights.path.suffix == ".safetensors":
            return load_file(weights.path)
        tree = torch.load(weights.path, map_location="cpu", weights_only=True)
        if not isinstance(tree, Mapping):
            raise ValueError(f"it holds a {type(tree).__name__}, not named tensors")
    except (
        *(SafetensorError, pickle.UnpicklingError, RuntimeError),
        *(OSError, EOFError, ValueError, KeyError, AttributeError),
    ) as error:
        raise WeightsError(
            f"weights of {weights.name}: {weights.path} cannot be read ({error})."
            " Expected safetensors or a torch checkpoint; put a good copy in its place."
        ) from error
    return _flatten(tree)


def load_strict(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    weights: ResolvedWeights,
) -> None:
    """Loads tensors into a network that needs exactly these.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape.
    """
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), _MAX_REASON)
        entry = WEIGHTS[weights.name]
        raise WeightsError(
            f"weights of {weights.name}: {weights.path} does not fit the network"
            f" ({reason}). Expected the tensors of {entry.url or entry.origin}; correct"
            " the key `weights` of the recipe or remove it."
        ) from error


def file_sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_offline() -> bool:
    """Whether `SFMPREP_OFFLINE` forbids the network."""
    return os.environ.get("SFMPREP_OFFLINE", "") not in ("", "0")


def cache_folder() -> Path:
    """Where downloaded weights lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sfmprep" / "weights"


def _cache_path(entry: Weights, url: str) -> Path:
    """`<sha256>-<file>`, so that a changed upstream file never shadows this one."""
    file = url.rpartition("/")[2]
    return cache_folder() / f"{entry.sha256 or 'unchecked'}-{file}"


def _checked(entry: Weights, path: Path, expected: str | None) -> ResolvedWeights:
    sha256 = file_sha256(path)
    if expected and sha256 != expected:
        raise WeightsError(
            f"weights of {entry.name}: {path} has sha256 {sha256} but expected"
            f" {expected}. Delete it, or, if it is a file of your own, name it in the"
            " recipe (`weights: PATH`)."
        )
    return ResolvedWeights(name=entry.name, path=path, sha256=sha256)


def _download(entry: Weights) -> ResolvedWeights:
    if entry.origin == "sfmprep":
        raise WeightsError(
            f"weights of {entry.name} are part of sfmprep, but this copy of it lacks"
            " them. Install it again."
        )
    if entry.url is None:
        raise WeightsError(
            f"weights of {entry.name} are not here, and sfmprep may not fetch them:"
            f" {entry.origin} states no licence. Ask its author for the file and name"
            " it in the recipe (`weights: PATH`), or put it as"
            f" {entry.name}.safetensors into the folder SFMPREP_WEIGHTS names."
        )
    advice = (
        f"Put {entry.name}.safetensors into the folder SFMPREP_WEIGHTS names, or run"
        f" `sfmprep weights fetch {entry.name}` where there is a network."
    )
    if is_offline():
        raise WeightsError(
            f"weights of {entry.name} are not here and SFMPREP_OFFLINE forbids the"
            f" download of {entry.url}. {advice}"
        )
    target = _cache_path(entry, entry.url)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    logger.info("fetching %s (%s, %s)", entry.url, entry.origin, entry.licence)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(entry.url, timeout=_TIMEOUT_S) as answer,
            part.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file, _CHUNK)
            # http.client takes an early end of the connection for the end of the file
            announced = int(answer.headers.get("Content-Length") or file.tell())
            if file.tell() != announced:
                raise OSError(
                    f"the transfer stopped after {file.tell()} of {announced} bytes"
                )
        sha256 = file_sha256(part)
        if entry.sha256 and sha256 != entry.sha256:
            raise WeightsError(
                f"weights of {entry.name}: {entry.url} gave a file of sha256 {sha256}"
                f" but expected {entry.sha256}; it was not kept. {advice}"
            )
        part.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"weights of {entry.name} are not here and {entry.url} cannot be fetched"
            f" ({reason}). {advice}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return ResolvedWeights(name=entry.name, path=target, sha256=sha256)


def _flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    import torch

    flat: dict[str, torch.Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
    return flat
