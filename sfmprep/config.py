"""Recipes: what a run does, as frozen records read from YAML.

A recipe names its features and its matcher, and, under `otherwise`, what to use
instead where the weights of the first choice can be had neither here nor from the
network. Unknown keys are refused. `Recipe.frontends` are the choices in order.
"""

from __future__ import annotations

import copy
import difflib
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from sfmprep.errors import ConfigError

Unit = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


# ------------------------------------------------------------------------- features
class SiftConfig(Config):
    """SIFT (Lowe, IJCV 2004) as COLMAP extracts it, with RootSIFT normalisation."""

    type: Literal["sift"] = "sift"
    max_keypoints: PositiveInt = 8192
    """The most keypoints of one image; those at the largest scales are kept."""
    max_size: PositiveInt = 3200
    """Longer side in pixels that larger images are reduced to."""


class AlikedConfig(Config):
    """ALIKED (Zhao et al., TIM 2023), BSD-3-Clause."""

    type: Literal["aliked"] = "aliked"
    model: Literal["aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32"] = (
        "aliked-n16rot"
    )
    """n16rot was trained with rotations; n32 has larger descriptors' support."""
    max_keypoints: PositiveInt = 4096
    """The most keypoints of one image, best scores first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_score: Unit = 0.2
    """Keypoints with a lower score are dropped, in 0..1."""
    nms_radius: PositiveInt = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


class XFeatConfig(Config):
    """XFeat (Potje et al., CVPR 2024), Apache-2.0."""

    type: Literal["xfeat"] = "xfeat"
    max_keypoints: PositiveInt = 4096
    """The most keypoints of one image, best scores first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_score: Unit = 0.05
    """Keypoints whose heat map value is lower are dropped, in 0..1."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


class DiskConfig(Config):
    """DISK (Tyszkiewicz et al., NeurIPS 2020), Apache-2.0."""

    type: Literal["disk"] = "disk"
    max_keypoints: PositiveInt = 4096
    """The most keypoints of one image, best scores first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_score: float = 0.0
    """Keypoints with a lower score (a logit) are dropped."""
    nms_radius: PositiveInt = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


FeaturesConfig = Annotated[
    SiftConfig | AlikedConfig | XFeatConfig | DiskConfig, Field(discriminator="type")
]


# -------------------------------------------------------------------------- matcher
class NearestConfig(Config):
    """Mutual nearest neighbours of the descriptors."""

    type: Literal["nearest"] = "nearest"
    ratio: Unit | None = 0.8
    """Largest distance to the best over distance to the second best, or null."""
    min_similarity: Unit | None = None
    """Smallest cosine of the angle between two matched descriptors, or null."""


class LightGlueConfig(Config):
    """LightGlue (Lindenberger et al., ICCV 2023), Apache-2.0."""

    type: Literal["lightglue"] = "lightglue"
    model: Literal[
        "aliked-lightglue",
        "superpoint-lightglue",
        "disk-lightglue",
        "sift-lightglue",
        "lighterglue",
        "lighterglue-l3",
    ]
    """Which checkpoint; it must fit the features."""
    min_score: Unit = 0.1
    """Matches with a lower score are dropped, in 0..1."""
    depth_confidence: Unit | None = 0.95
    """Share of confident keypoints at which a pair stops early, or null for never."""
    width_confidence: Unit | None = 0.99
    """Confidence at which unmatchable keypoints are dropped, or null for never."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


MatcherConfig = Annotated[NearestConfig | LightGlueConfig, Field(discriminator="type")]


class Frontend(Config):
    """Features and the matcher that goes with them."""

    features: FeaturesConfig
    matcher: MatcherConfig

    def label(self) -> str:
        """A short name for messages, such as `xfeat + lighterglue`."""
        return " + ".join(
            getattr(part, "model", part.type) for part in (self.features, self.matcher)
        )


# ---------------------------------------------------------------------------- pairs
class ExhaustiveConfig(Config):
    """Every image with every other."""

    type: Literal["exhaustive"] = "exhaustive"


class SequentialConfig(Config):
    """Neighbours in the order of the names: frames of a film."""

    type: Literal["sequential"] = "sequential"
    window: PositiveInt = 10
    """Each image is paired with so many that follow it."""
    quadratic: bool = True
    """Also with those 2, 4, 8, ... images later, up to 2 to the power of `window`."""


class RetrievalConfig(Config):
    """The most similar images, by a VLAD of the local descriptors; needs no weights."""

    type: Literal["retrieval"] = "retrieval"
    num_neighbours: PositiveInt = 20
    """Each image is paired with so many of the most similar ones."""
    num_clusters: PositiveInt = 256
    """Words of the vocabulary that is learned from the capture itself."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Pairs with a lower cosine are left out; neighbours often have one below 0."""


class PairsFileConfig(Config):
    """Pairs named by the user."""

    type: Literal["file"] = "file"
    path: Path
    """Text file, one pair of names a line, separated by a tab or a space."""


class AutoPairsConfig(Config):
    """Exhaustive for small captures, retrieval for the others."""

    type: Literal["auto"] = "auto"
    exhaustive_up_to: NonNegativeInt = 60
    """With so many images or fewer, every image is paired with every other."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """How pairs are found above that."""


PairsConfig = Annotated[
    AutoPairsConfig
    | ExhaustiveConfig
    | SequentialConfig
    | RetrievalConfig
    | PairsFileConfig,
    Field(discriminator="type"),
]


# --------------------------------------------------------------------------- COLMAP
class DatabaseConfig(Config):
    """Cameras and geometric verification."""

    camera_model: Literal[
        "SIMPLE_PINHOLE",
        "PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
        "OPENCV",
        "FULL_OPENCV",
        "SIMPLE_RADIAL_FISHEYE",
        "RADIAL_FISHEYE",
        "OPENCV_FISHEYE",
    ] = "SIMPLE_RADIAL"
    """COLMAP's camera model for new cameras."""
    cameras: Literal["auto", "single", "per-folder", "per-image"] = "auto"
    """Which images share a camera; auto: same make, model, lens, size and folder."""
    focal_length: PositiveFloat | None = None
    """Focal length in pixels of every image where it is known; null: EXIF or guess."""
    max_error_px: PositiveFloat = 4.0
    """Largest distance of an inlier from its epipolar line, pixels."""
    min_num_inliers: PositiveInt = 15
    """A pair with fewer inliers is dropped."""


class MappingConfig(Config):
    """From verified pairs to poses."""

    type: Literal["incremental", "global", "none"] = "incremental"
    """COLMAP's incremental mapper, its global one, or no mapping at all."""
    min_num_matches: PositiveInt = 15
    """Pairs with fewer verified matches are ignored."""
    min_model_size: PositiveInt = 3
    """Models with fewer images are dropped."""
    refine_principal_point: Literal["auto", "always", "never"] = "auto"
    """Whether the last bundle adjustment moves principal points."""


class ExportConfig(Config):
    """The dataset that trainers open."""

    downscales: tuple[Literal[2, 4, 8], ...] = (2, 4, 8)
    """Factors of the reduced copies `images_2`, `images_4`, ..."""
    max_size: PositiveInt | None = None
    """Longer side in pixels of the exported images, or null for full resolution."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of images that had to be written anew."""


class Recipe(Config):
    """Everything a run does."""

    name: str
    description: str = ""
    features: FeaturesConfig
    matcher: MatcherConfig
    otherwise: tuple[Frontend, ...] = ()
    """What to use where the weights of the choice before cannot be had."""
    pairs: PairsConfig = AutoPairsConfig()
    database: DatabaseConfig = DatabaseConfig()
    mapping: MappingConfig = MappingConfig()
    export: ExportConfig = ExportConfig()
    seed: NonNegativeInt = 0
    """Seed of everything random: RANSAC, the retrieval vocabulary, the mapper."""

    @property
    def frontends(self) -> tuple[Frontend, ...]:
        """The choices of features and matcher, best first."""
        return (
            Frontend(features=self.features, matcher=self.matcher),
            *self.otherwise,
        )

    def with_frontend(self, frontend: Frontend) -> Recipe:
        """This recipe with one choice made."""
        return self.model_copy(
            update={
                "features": frontend.features,
                "matcher": frontend.matcher,
                "otherwise": (),
            }
        )

    def to_yaml(self) -> str:
        """This recipe as text that `load_recipe` reads back."""
        return yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        )


# -------------------------------------------------------------------------- loading
def recipe_names() -> list[str]:
    """The names of the recipes that come with sfmprep."""
    folder = importlib.resources.files("sfmprep.recipes")
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe by name, or from a YAML file.

    Args:
        name_or_path: One of `recipe_names()`, or the path of a YAML file.
        overrides: Settings such as `features.max_keypoints=2048`. One of `features`
            or `matcher` applies to every choice that has this setting; one of
            `features.type` or `features.model` leaves only the choices that have it.

    Raises:
        ConfigError: no such recipe or file, not YAML, an unknown key or a bad value.
    """
    data, source = _read_recipe(name_or_path)
    data.setdefault("name", Path(name_or_path).stem)
    data.setdefault("pairs", {"type": "auto"})
    recipe = _validate(data, source)
    if not overrides:
        return recipe
    for override in overrides:
        data = _override(data, override)
    return _validate(data, f"{source} with --set {' '.join(overrides)}")


def read_resolved(path: Path) -> Recipe:
    """Reads the recipe that a run has written into its output folder.

    Raises:
        ConfigError: the file cannot be read or is damaged.
    """
    return _validate(*_read_recipe(path))


def _read_recipe(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """The content of a recipe, not checked yet, and what to call it in messages."""
    text, source = _recipe_text(name_or_path)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source} holds {type(data).__name__} but a recipe is a mapping of keys"
            " such as `features:` and `matcher:`. See `sfmprep recipes splat`."
        )
    return data, source


def _recipe_text(name_or_path: str | Path) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text("utf-8"), f"recipe file {path}"
        except OSError as error:
            raise ConfigError(
                f"recipe file {path} cannot be read: {error.strerror}"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"recipe file {path} is not UTF-8 text") from error
    names = recipe_names()
    if str(name_or_path) not in names:
        raise ConfigError(
            f"no recipe is called {str(name_or_path)!r}."
            f"{_did_you_mean(str(name_or_path), names)} Recipes: {', '.join(names)};"
            " or give the path of a .yaml file."
        )
    folder = importlib.resources.files("sfmprep.recipes")
    text = folder.joinpath(f"{name_or_path}.yaml").read_text("utf-8")
    return text, f"recipe {name_or_path}"


def _override(data: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Returns `data` with one `dotted.key=value` set."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(
            f"--set {override!r} is not KEY=VALUE; an example:"
            " --set features.max_keypoints=2048"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override!r}: {text!r} is not a YAML value"
        ) from error
    if path[0] == "otherwise" and value != []:
        raise ConfigError(f"--set {override!r}: `otherwise` can only be set to [].")
    result = copy.deepcopy(dict(data))
    if path[0] not in ("features", "matcher") or not result.get("otherwise"):
        _set(result, path, value, override)
        return result
    return _override_frontends(result, path, value, override)


def _override_frontends(
    data: dict[str, Any], path: list[str], value: object, override: str
) -> dict[str, Any]:
    """Sets a key in every choice of features and matcher that has it."""
    frontends = [
        {"features": data["features"], "matcher": data["matcher"]},
        *data["otherwise"],
    ]
    part, *rest = path
    if not rest:
        raise ConfigError(
            f"--set {override!r}: {part!r} is a section; set one of its keys, or write"
            " a recipe file."
        )
    if rest in (["type"], ["model"]):
        kept = [f for f in frontends if f[part].get(rest[0]) == value]
        if not kept:
            have = sorted({str(f[part].get(rest[0])) for f in frontends} - {"None"})
            raise ConfigError(
                f"--set {override!r}: the recipe's choices are {', '.join(have)}."
                f"{_did_you_mean(str(value), have)} For another, write a recipe file."
            )
        frontends = kept
    else:
        owners = [f for f in frontends if rest[0] in _fields(part, f[part])]
        if not owners:
            have = sorted({n for f in frontends for n in _fields(part, f[part])})
            raise ConfigError(
                f"--set {override!r}: no {part} of this recipe has the setting"
                f" {'.'.join(rest)!r}.{_did_you_mean('.'.join(rest), have)}"
            )
        for frontend in owners:
            _set(frontend, path, value, override)
    first, *others = frontends
    return {**data, **first, "otherwise": others}


def _fields(part: str, section: Mapping[str, Any]) -> Sequence[str]:
    """The settings that a features or matcher section of this type has."""
    return list(_TYPES[part][section["type"]].model_fields)


def _set(data: dict[str, Any], path: Sequence[str], value: object, text: str) -> None:
    for key in path[:-1]:
        below = data.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {text!r}: {key!r} is a value, not a section")
        data = below
    is_choice = len(path) == 2 and path[0] in _TYPES and path[1] == "type"
    if is_choice and data.get("type") != value:
        data.clear()  # the settings of another type mean nothing to this one
    data[path[-1]] = value


def _validate(data: Mapping[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_describe(dict(item)) for item in error.errors()]
        raise ConfigError(f"{source}: " + "\n".join(lines)) from error


def _describe(item: Mapping[str, Any]) -> str:
    """One validation error in words."""
    where = [str(part) for part in item["loc"]]
    # pydantic puts the tag of a discriminated union into the location
    key = ".".join(part for k, part in enumerate(where) if not _is_tag(where, k))
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        types = list(_TYPES[where[-1]])
        if item["type"] == "union_tag_not_found":
            return f"key '{key}.type' is missing. Types: {', '.join(types)}."
        tag = item["ctx"]["tag"]
        return (
            f"{key}.type = {tag!r} is unknown.{_did_you_mean(tag, types)}"
            f" Types: {', '.join(types)}."
        )
    if item["type"] == "extra_forbidden":
        known = list(_keys_beside(where))
        return (
            f"unknown key {key!r}.{_did_you_mean(where[-1], known)}"
            f" Keys here: {', '.join(known)}."
        )
    if item["type"] == "missing":
        return f"key {key!r} is missing."
    return f"{key} = {item['input']!r}: {item['msg']}."


# the sections that are a choice by `type`
_TYPES: Mapping[str, Mapping[str, type[Config]]] = {
    section: {model.model_fields["type"].default: model for model in models}
    for section, models in (
        ("features", (SiftConfig, AlikedConfig, XFeatConfig, DiskConfig)),
        ("matcher", (NearestConfig, LightGlueConfig)),
        (
            "pairs",
            (
                AutoPairsConfig,
                ExhaustiveConfig,
                SequentialConfig,
                RetrievalConfig,
                PairsFileConfig,
            ),
        ),
    )
}


def _is_tag(where: Sequence[str], k: int) -> bool:
    return k > 0 and where[k - 1] in _TYPES and k < len(where) - 1


def _keys_beside(where: Sequence[str]) -> Iterator[str]:
    """The keys that are allowed where an unknown one was found."""
    models: Mapping[str, type[Config]] = {
        **_TYPES["features"],
        **_TYPES["matcher"],
        **_TYPES["pairs"],
        "database": DatabaseConfig,
        "mapping": MappingConfig,
        "export": ExportConfig,
        "otherwise": Frontend,
    }
    parents = [part for part in where[:-1] if not part.isdigit()]
    yield from (models[parents[-1]] if parents else Recipe).model_fields


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
