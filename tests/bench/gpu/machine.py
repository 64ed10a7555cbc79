"""What the machine is, and the rates that everything is held against."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

from sfmprep.models.shared.adapter import inference
from tests.bench.gpu.told import Told
from tests.bench.measure import best_of, copy_bandwidth

_LIBRARIES = ("pycolmap", "kornia", "numpy", "h5py", "scipy", "opencv-python-headless")


def machine(told: Told) -> None:
    """What it is, and the rates that everything is held against."""
    told["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    told["versions"] |= {"cuda": torch.version.cuda, "cudnn": _cudnn()}
    told["versions"] |= {name: _version(name) for name in _LIBRARIES}
    told["cores"] = len(os.sched_getaffinity(0))
    if not told.is_small:
        properties = torch.cuda.get_device_properties(told.device)
        told["gpu"] = properties.name
        told["gpu_bytes"] = properties.total_memory
        told["free_bytes"] = torch.cuda.mem_get_info(told.device)[0]
    told["copy_bytes_per_s"] = copy_bandwidth(told.device)
    rates = told["matmul_flops"] = {}
    side = 512 if told.is_small else 8192
    for name, dtype in (
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
    ):
        a = torch.randn(side, side, device=told.device, dtype=dtype)
        run = inference(lambda a=a: a @ a)
        rates[name] = 2 * side**3 / best_of(run)
        told["matmul_flops"] = rates
    told["float32_errors"] = _float32_errors(told.device)


def _cudnn() -> int | None:
    return torch.backends.cudnn.version() if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None


def _float32_errors(device: str) -> dict[str, float]:
    """Relative errors in float32, where it is promised and where TF32 is allowed."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 512, 512)
    image, kernel = torch.randn(1, 64, 64, 64), torch.randn(64, 64, 3, 3)
    exact = {
        "product": a.double() @ b.double(),
        "convolution": torch.nn.functional.conv2d(image.double(), kernel.double()),
    }
    a, b, image, kernel = (x.to(device) for x in (a, b, image, kernel))

    def found() -> dict[str, torch.Tensor]:
        return {
            "product": a @ b,
            "convolution": torch.nn.functional.conv2d(image, kernel),
        }

    owners = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [owner.fp32_precision for owner in owners]
    for owner in owners:
        owner.fp32_precision = "tf32"
    allowed, barred = found(), inference(found)()
    for owner, value in zip(owners, before, strict=True):
        owner.fp32_precision = value
    return {
        f"{name}, {what}": float((x.cpu().double() - exact[name]).norm())
        / float(exact[name].norm())
        for what, result in (("TF32 allowed", allowed), ("ours", barred))
        for name, x in result.items()
    }
