"""Recipes from YAML: by name or file, with overrides; what is said of wrong ones."""

from __future__ import annotations

import copy
import difflib
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sfmprep.config import (
    AlikedConfig,
    AutoPairsConfig,
    CompactConfig,
    Config,
    DatabaseConfig,
    DenseConfig,
    DiskConfig,
    EngineConfig,
    ExhaustiveConfig,
    ExportConfig,
    Frontend,
    LightGlueConfig,
    LoftrConfig,
    MappingConfig,
    NearestConfig,
    OutlierConfig,
    PairsFileConfig,
    Recipe,
    RefinementConfig,
    RetrievalConfig,
    S2ldConfig,
    SeedConfig,
    SequentialConfig,
    SiftConfig,
    WorldConfig,
    XFeatConfig,
    XFeatStarConfig,
)
from sfmprep.errors import ConfigError

_OF_CHOICE = re.compile(r"otherwise\.\d+\.")


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
    if overrides:
        for override in overrides:
            data = _override(data, override)
        recipe = _validate(data, f"{source} with --set {' '.join(overrides)}")
    if recipe.masks is None:
        return recipe
    # a later run of the same folder may start elsewhere
    return recipe.model_copy(update={"masks": recipe.masks.resolve()})


def read_resolved(path: Path) -> Recipe:
    """Reads the recipe that a run has written into its output folder.

    Raises:
        ConfigError: the file cannot be read or is damaged.
    """
    data, source = _read_recipe(path)
    if "seed" not in data:  # the last key that is written
        raise ConfigError(
            f"{source} ends too early: it is damaged. Delete it and run again with the"
            " recipe of the earlier run."
        )
    return _validate(data, source)


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
        found = [_describe(dict(item)) for item in error.errors()]
        # what is wrong in every choice of features and matcher is told once
        lines = [
            k
            for k in found
            if (of_first := _OF_CHOICE.sub("", k)) == k or of_first not in found
        ]
        raise ConfigError(f"{source}: " + "\n".join(lines)) from error


def _describe(item: Mapping[str, Any]) -> str:
    """One validation error in words."""
    where = [str(part) for part in item["loc"]]
    # pydantic puts the tag of a discriminated union into the location
    key = ".".join(part for k, part in enumerate(where) if not _is_tag(where, k))
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        types = list(_DENSE_TYPES if where[0] == "dense" else _TYPES[where[-1]])
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
        (
            "features",
            (SiftConfig, AlikedConfig, XFeatConfig, DiskConfig, CompactConfig),
        ),
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


_DENSE_TYPES: Mapping[str, type[Config]] = {
    model.model_fields["type"].default: model
    for model in (S2ldConfig, LoftrConfig, XFeatStarConfig)
}


def _is_tag(where: Sequence[str], k: int) -> bool:
    return k > 0 and where[k - 1] in _TYPES and k < len(where) - 1


def _keys_beside(where: Sequence[str]) -> Iterator[str]:
    """The keys that are allowed where an unknown one was found."""
    models: Mapping[str, type[Config]] = {
        **_TYPES["features"],
        **_TYPES["matcher"],
        **_TYPES["pairs"],
        **_DENSE_TYPES,
        "dense": DenseConfig,
        "refinement": RefinementConfig,
        "database": DatabaseConfig,
        "mapping": MappingConfig,
        "export": ExportConfig,
        "world": WorldConfig,
        "seed": SeedConfig,
        "outliers": OutlierConfig,
        "engine": EngineConfig,
        "otherwise": Frontend,
    }
    parents = [part for part in where[:-1] if not part.isdigit()]
    yield from (models[parents[-1]] if parents else Recipe).model_fields


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
