"""Recipes from YAML: by name or file, with overrides; what is said of wrong ones.

A recipe that says `like: NAME or FILE` takes over what it does not say itself. Sections
are taken over key by key; a section that is a choice by `type` starts anew where its
type is another one, a list always. Of `features` and `matcher` it is as with overrides:
a setting applies to every choice of the other recipe that has it, but whoever names a
`type` or a `model` names the choices, so `otherwise` is not taken over.
"""

from __future__ import annotations

import copy
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sfmprep.config.base import Config, configs_in
from sfmprep.config.recipe import Frontend, Recipe
from sfmprep.errors import ConfigError, did_you_mean

C = TypeVar("C", bound=Config)

_OF_CHOICE = re.compile(r"otherwise\.\d+\.")
_FRONTEND = tuple(Frontend.model_fields)
_NAMES_A_CHOICE = {"type", "model", "matcher"}  # the last one in `stronger`
_OWN = {"name", "description"}  # of a recipe itself, whatever it is like


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

    Returns:
        The whole recipe. Its paths are absolute: a relative one is below the current
        folder.

    Raises:
        ConfigError: no such recipe or file, not YAML, an unknown key or a bad value,
            or recipes that are like each other in a circle.
    """
    data, source = _read_whole(name_or_path)
    data.setdefault("pairs", {"type": "auto"})
    recipe = _validate(data, source)
    if overrides:
        for override in overrides:
            data = _override(data, override)
        recipe = _validate(data, f"{source} with --set {' '.join(overrides)}")
    return _with_absolute_paths(recipe)


def read_resolved(path: Path) -> Recipe:
    """Reads the recipe that a run has written into its output folder.

    Raises:
        ConfigError: the file cannot be read or is damaged.
    """
    data, source = _read(path)
    if "seed" not in data:  # the last key that is written
        raise ConfigError(
            f"{source} ends too early: it is damaged. Delete it and run again with the"
            " recipe of the earlier run."
        )
    return _validate(data, source)


# -------------------------------------------------------------------------- reading
def _read_whole(
    name_or_path: str | Path, chain: Mapping[Path, str] = MappingProxyType({})
) -> tuple[dict[str, Any], str]:
    """A recipe with all that it takes over, and what to call it in messages.

    What it is like was checked by itself, it was not.
    """
    own, source = _read(name_or_path)
    place = Path(name_or_path).resolve()  # of a recipe in the package only its name
    if place in chain:
        circle = " -> ".join([*chain.values()][[*chain].index(place) :])
        raise ConfigError(
            f"these recipes are like each other in a circle: {circle} -> {source}."
            " Remove one `like`."
        )
    own.setdefault("name", Path(name_or_path).stem)
    if "like" not in own:
        return own, source
    like = own.pop("like")
    if not isinstance(like, str):
        raise ConfigError(
            f"{source}: like = {like!r} is not the name of a recipe or the path of a"
            " .yaml file."
        )
    if _is_file(like):
        like = Path(name_or_path).parent / like
    elif like not in recipe_names():
        raise ConfigError(f"{source}: like = {like!r}: {_no_recipe(like)}")
    base, base_source = _read_whole(like, {**chain, place: source})
    _validate(base, base_source)
    return _over_recipe(base, own, source), source


def _read(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """The content of a recipe, not checked yet, and what to call it in messages."""
    text, source = _recipe_text(name_or_path)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{source} is not YAML: {error}\nCorrect it there. See `sfmprep recipes"
            " splat`."
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source} holds {type(data).__name__} but a recipe is a mapping of keys"
            " such as `features:` and `matcher:`. See `sfmprep recipes splat`."
        )
    return data, source


def _recipe_text(name_or_path: str | Path) -> tuple[str, str]:
    path = Path(name_or_path)
    if _is_file(path):
        try:
            return path.read_text("utf-8"), f"recipe file {path}"
        except OSError as error:
            raise ConfigError(
                f"recipe file {path} cannot be read: {error.strerror}. Correct the"
                " path, or name a recipe of `sfmprep recipes`."
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"recipe file {path} is not UTF-8 text. Save it as such."
            ) from error
    if str(name_or_path) not in recipe_names():
        raise ConfigError(_no_recipe(str(name_or_path)))
    folder = importlib.resources.files("sfmprep.recipes")
    text = folder.joinpath(f"{name_or_path}.yaml").read_text("utf-8")
    return text, f"recipe {name_or_path}"


def _is_file(name_or_path: str | Path) -> bool:
    return Path(name_or_path).suffix in (".yaml", ".yml")


def _no_recipe(name: str) -> str:
    names = recipe_names()
    return (
        f"no recipe is called {name!r}.{did_you_mean(name, names)} Recipes:"
        f" {', '.join(names)}; or give the path of a .yaml file."
    )


# -------------------------------------------------------------------- taking over
def _over_recipe(
    base: Mapping[str, Any], own: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """What a recipe says itself over the one that it is like."""
    data = {key: value for key, value in base.items() if key not in _OWN}
    said = {k: own[k] for k in _FRONTEND if isinstance(own.get(k), Mapping)}
    if any(_NAMES_A_CHOICE & section.keys() for section in said.values()):
        data.pop("otherwise", None)
        data.pop("stronger", None)  # it may not fit other features
        data.pop("beside", None)  # they may be the same
        data.pop("closer", None)
    elif data.get("otherwise") and "otherwise" not in own:
        if "stronger" in own and own["stronger"] is None:
            data = _in_frontends(data, ["stronger"], None, source)
        for part, section in said.items():
            for key, value in section.items():
                data = _in_frontends(data, [part, key], value, source)
        own = {key: value for key, value in own.items() if key not in said}
    return dict(_over(data, own, [Recipe]))


def _over(base: Any, own: Any, configs: Sequence[type[Config]]) -> Any:
    """`own` over `base`, which is one of `configs` where it is a section."""
    if not isinstance(base, Mapping) or not isinstance(own, Mapping):
        return own
    if len(configs) > 1:
        if own.get("type", base["type"]) != base["type"]:
            return own
        configs = [_by_type(configs)[base["type"]]]
    below = {key: _configs_below(configs, key) for key in own}
    return {**base, **{k: _over(base.get(k), own[k], below[k]) for k in own}}


def _override(data: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Returns `data` with one `dotted.key=value` set."""
    key, equals, text = override.partition("=")
    path, where = key.strip().split("."), f"--set {override!r}"
    if not equals or not all(path):
        raise ConfigError(
            f"{where} is not KEY=VALUE; an example: --set features.max_keypoints=2048"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {text!r} is not a YAML value") from error
    if path[0] == "otherwise" and value != []:
        raise ConfigError(f"{where}: `otherwise` can only be set to [].")
    if path[0] == "like":
        raise ConfigError(f"{where}: `like` can only be set in a recipe file.")
    if path[0] in _FRONTEND and data.get("otherwise"):
        return _in_frontends(data, path, value, where)
    result = copy.deepcopy(dict(data))
    _set(result, path, value, where)
    return result


def _in_frontends(
    data: Mapping[str, Any], path: list[str], value: object, where: str
) -> dict[str, Any]:
    """Sets a key in every choice of features and matcher that has it."""
    first, others = {part: data.get(part) for part in _FRONTEND}, data["otherwise"]
    frontends: list[dict[str, Any]] = copy.deepcopy([first, *others])
    part, *rest = path
    if path == ["stronger"] and value is None:
        first, *others = ({**frontend, part: None} for frontend in frontends)
        return {**data, **first, "otherwise": others}
    if not rest:
        raise ConfigError(
            f"{where}: {part!r} is a section; set one of its keys, or write a recipe"
            " file."
        )
    if part != "stronger" and len(rest) == 1 and rest[0] in _NAMES_A_CHOICE:
        kept = [f for f in frontends if f[part].get(rest[0]) == value]
        if not kept:
            have = sorted({str(f[part].get(rest[0])) for f in frontends} - {"None"})
            raise ConfigError(
                f"{where}: the recipe's choices are {', '.join(have)}."
                f"{did_you_mean(str(value), have)} For another, write a recipe file."
            )
        frontends = kept
    else:
        fields = [_fields_of(part, f.get(part)) for f in frontends]
        owners = [
            f for f, have in zip(frontends, fields, strict=True) if rest[0] in have
        ]
        if not owners:
            if all(f.get(part) is None for f in frontends):
                raise _null(part, where)
            known = sorted({name for have in fields for name in have})
            raise ConfigError(
                f"{where}: no {part} of this recipe has the setting"
                f" {'.'.join(rest)!r}.{did_you_mean('.'.join(rest), known)}"
            )
        for frontend in owners:
            _set(frontend, path, value, where)
    first, *others = frontends
    return {**data, **first, "otherwise": others}


def _fields_of(part: str, section: Mapping[str, Any] | None) -> Iterable[str]:
    """The settings that a part of a choice has; none where it is left out."""
    if section is None:
        return ()
    configs = _configs_below([Frontend], part)
    if len(configs) > 1:
        configs = [_by_type(configs)[section["type"]]]
    return configs[0].model_fields


def _set(data: dict[str, Any], path: Sequence[str], value: object, where: str) -> None:
    configs: Sequence[type[Config]] = [Recipe]
    for key in path[:-1]:
        below = data.setdefault(key, {})
        if below is None and _configs_below(configs, key):
            raise _null(key, where)
        if not isinstance(below, dict):
            raise ConfigError(f"{where}: {key!r} is a value, not a section")
        data, configs = below, _configs_below(configs, key)
    if path[-1] == "type" and len(configs) > 1 and data.get("type") != value:
        data.clear()  # the settings of another type mean nothing to this one
    data[path[-1]] = value


def _null(key: str, where: str) -> ConfigError:
    """What is said of a setting of a part that is left out."""
    return ConfigError(
        f"{where}: `{key}` is null, so it has no settings. Leave out what sets it to"
        f" null, or name all that it should be in a recipe file: `{key}: {{...}}`."
    )


def _with_absolute_paths(config: C) -> C:
    """A later run of the same folder may start elsewhere."""

    def absolute(value: object) -> object:
        if isinstance(value, Path):
            return value.resolve()
        if isinstance(value, tuple):
            return tuple(map(absolute, value))
        return _with_absolute_paths(value) if isinstance(value, Config) else value

    return config.model_copy(update={name: absolute(value) for name, value in config})


# ------------------------------------------------------------------------- checking
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
    parts, around, here = _located(item["loc"])
    key = ".".join(parts)
    if item["type"] == "union_tag_not_found":
        return f"key '{key}.type' is missing. Types: {', '.join(_by_type(here))}."
    if item["type"] == "union_tag_invalid":
        tag, types = item["ctx"]["tag"], _by_type(here)
        return (
            f"{key}.type = {tag!r} is unknown.{did_you_mean(tag, types)}"
            f" Types: {', '.join(types)}."
        )
    if item["type"] == "extra_forbidden":
        known = [name for config in around for name in config.model_fields]
        if around == [Recipe]:
            known.append("like")
        return (
            f"unknown key {key!r}.{did_you_mean(parts[-1], known)}"
            f" Keys here: {', '.join(known)}."
        )
    if item["type"] == "missing":
        return f"key {key!r} is missing."
    return f"{key} = {item['input']!r}: {item['msg']}."


def _located(
    loc: Sequence[str | int],
) -> tuple[list[str], Sequence[type[Config]], Sequence[type[Config]]]:
    """Where an error is.

    Returns:
        The keys on the way, without the tags of choices, which pydantic puts between
        them; the records that the last key is of; and those that it can hold.
    """
    keys: list[str] = []
    around: Sequence[type[Config]] = []
    here: Sequence[type[Config]] = [Recipe]
    for part in loc:
        if len(here) > 1 and part in _by_type(here):
            here = [_by_type(here)[str(part)]]
            continue
        keys.append(str(part))
        if not isinstance(part, int):  # an item of a list is as the list
            around, here = here, _configs_below(here, part)
    return keys, around, here


def _by_type(configs: Sequence[type[Config]]) -> Mapping[str, type[Config]]:
    return {config.model_fields["type"].default: config for config in configs}


def _configs_below(configs: Sequence[type[Config]], key: str) -> list[type[Config]]:
    """The records that a key of these can hold; none for a value or an unknown key."""
    return [
        below
        for config in configs
        if key in config.model_fields
        for below in configs_in(config.model_fields[key].annotation)
    ]
