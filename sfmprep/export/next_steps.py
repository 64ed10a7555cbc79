"""The commands that open a result, to be copied into a shell anywhere."""

from __future__ import annotations

import shlex
from pathlib import Path

from sfmprep.config import Recipe, Target
from sfmprep.export.targets import FOLDERS_BELOW


def next_steps(images: Path, out: Path, recipe: Recipe) -> list[str]:
    """What opens a finished result: a command for each target, or the mapper's.

    Args:
        images: The folder of photographs.
        out: The output folder.
        recipe: Its targets; without mapping the next step is COLMAP's.

    Returns:
        Shell commands with absolute paths, quoted where that is needed.
    """
    out = out.resolve()
    if recipe.mapping.type == "none":
        sparse = shlex.quote(str(out / "sparse"))
        return [
            f"mkdir -p {sparse} && colmap mapper"
            f" --database_path {shlex.quote(str(out / 'database.db'))}"
            f" --image_path {shlex.quote(str(images.resolve()))}"
            f" --output_path {sparse}"
        ]
    first, *_ = targets = recipe.export.targets
    steps = []
    for target in targets:
        own = out / FOLDERS_BELOW / target
        steps.append(_opens(target, own if target != first and own.is_dir() else out))
    return steps


def _opens(target: Target, folder: Path) -> str:
    path = shlex.quote(str(folder))
    match target:
        case "nerfstudio":
            return f"ns-train splatfacto sfmprep-data --data {path}"
        case "gsplat":
            return (
                f"python simple_trainer.py default --data_dir {path} --data_factor 1"
                "  # gsplat"
            )
        case "3dgs":
            return f"python train.py -s {path}  # 3DGS"
        case "brush":
            return f"brush {path}"
        case "nerfstudio-360":
            return f"ns-train nerfacto nerfstudio-data --data {path}  # splats cannot"
        case "lichtfeld":
            return f"LichtFeld-Studio -d {path} -o splats"
        case "postshot" | "postshot-inverted":
            return f"# Postshot: drag the folder {path} into its window"
        case "3dgrut":
            return (
                "python train.py --config-name apps/colmap_3dgut.yaml"
                f" path={path} out_dir=runs dataset.downsample_factor=1  # 3dgrut"
            )
        case "colmap":
            model, pictures, database = (
                shlex.quote(str(folder / name))
                for name in ("sparse/0", "images", "new.db")
            )
            return (
                f"colmap gui --import_path {model} --image_path {pictures}"
                f" --database_path {database}"
            )


def making_command(images: Path, out: Path) -> str:
    """The command that makes the result in `out`, which holds its recipe."""
    folder, result, recipe = (
        shlex.quote(str(path))
        for path in (images.resolve(), out.resolve(), out.resolve() / "recipe.yaml")
    )
    return f"sfmprep reconstruct {folder} {result} --recipe {recipe}"
