"""What each setting of a recipe means, from the docstrings and types of its records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sfmprep.config.recipe import Recipe
from sfmprep.errors import ConfigError, did_you_mean

# told by `sfmprep recipes`, or only in a recipe file
_HIDDEN = ("name", "description", "otherwise")
_BY_RECIPE = "none, the recipe says it"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key that `--set` takes."""

    key: str
    """Such as `features.max_keypoints`."""
    text: str
    """What it means; a section's own sentence where the key names a type."""
    allowed: str
    """Its values in words, such as `a whole number above 0, or null`."""
    defaults: Mapping[str, str]
    """Type of its section (empty where there is only one) to default."""

    def summary(self) -> str:
        """The key, its default and its meaning in one line."""
        first, _, _ = self.text.partition("\n\n")
        meaning = self.allowed if self.key.endswith(".type") else _one_line(first)
        return f"{self.key} = {self._default()}: {meaning}"

    def whole(self) -> str:
        """Everything that is known of it, on several lines."""
        lines = [self.key, *(f"  {_one_line(p)}" for p in self.text.split("\n\n"))]
        if kinds := [kind for kind in self.defaults if kind]:
            lines.append(f"  for type: {', '.join(kinds)}")
        lines.append(f"  values: {self.allowed}")
        lines.append(f"  default: {self._default()}")
        return "\n".join(lines)

    def _default(self) -> str:
        by_value: dict[str, list[str]] = {}
        for kind, value in self.defaults.items():
            by_value.setdefault(value, []).append(kind)
        if len(by_value) == 1:
            return next(iter(by_value))
        return ", ".join(f"{v} ({', '.join(ks)})" for v, ks in by_value.items())


def settings() -> list[Setting]:
    """All settings, in the order of a recipe; those of several types are one."""
    schema = Recipe.model_json_schema()
    merged: dict[str, Setting] = {}
    for found in _of_object(schema, schema["$defs"], "", ""):
        known = merged.get(found.key)
        merged[found.key] = found if known is None else _merged(known, found)
    return list(merged.values())


def describe(key: str | None) -> str:
    """What `sfmprep settings KEY` shows: one setting, those of a section, or all.

    Raises:
        ConfigError: there is no such key.
    """
    known = settings()
    if key is None:
        return "\n".join(setting.summary() for setting in known)
    exact = [setting for setting in known if setting.key == key]
    below = [setting for setting in known if setting.key.startswith(f"{key}.")]
    if not exact and not below:
        hint = did_you_mean(key, (setting.key for setting in known), most=3)
        raise ConfigError(
            f"no setting is called {key!r}.{hint} See `sfmprep settings`."
        )
    return "\n\n".join(setting.whole() for setting in [*exact, *below])


def _merged(a: Setting, b: Setting) -> Setting:
    values = [a.allowed, *([b.allowed] if b.allowed not in a.allowed else [])]
    texts = [a.text, *([b.text] if b.text not in a.text else [])]
    return Setting(
        key=a.key,
        text="\n\n".join(texts),
        allowed="; or ".join(values),
        defaults={**a.defaults, **b.defaults},
    )


# ------------------------------------------------------------------------- the schema
Node = Mapping[str, Any]


def _of_object(node: Node, defs: Node, prefix: str, kind: str) -> Iterator[Setting]:
    for name, child in node["properties"].items():
        if prefix or name not in _HIDDEN:
            yield from _of_node(child, defs, f"{prefix}{name}", kind)


def _of_node(node: Node, defs: Node, key: str, kind: str) -> Iterator[Setting]:
    section = _resolved(node, defs)
    if "discriminator" in section:
        if "anyOf" in node:  # one that may be left out
            yield _leaf(node, key, kind, "a mapping that begins with type, or null")
        yield from _of_choice(node, section, defs, key)
    elif "properties" in section:
        if "anyOf" in node:  # a section that is off, null, or on, {}
            yield _leaf(node, key, kind, "{} for on, or null")
        yield from _of_object(section, defs, f"{key}.", kind)
    elif "const" not in node:  # the type of a choice, told there
        yield _leaf(node, key, kind, _allowed(section, defs))


def _of_choice(node: Node, section: Node, defs: Node, key: str) -> Iterator[Setting]:
    """A section of several types."""
    kinds = {
        kind: _resolved({"$ref": ref}, defs)
        for kind, ref in section["discriminator"]["mapping"].items()
    }
    kinds = {kind: kinds[kind] for kind in sorted(kinds)}
    own = node.get("default") or {}
    yield Setting(
        key=f"{key}.type",
        text="\n\n".join(
            f"{k}: {_one_line(d['description'])}" for k, d in kinds.items()
        ),
        allowed=", ".join(kinds),
        defaults={"": own.get("type", _BY_RECIPE)},
    )
    for kind, definition in kinds.items():
        yield from _of_object(definition, defs, f"{key}.", kind)


def _leaf(node: Node, key: str, kind: str, allowed: str) -> Setting:
    default = json.dumps(node["default"]) if "default" in node else _BY_RECIPE
    return Setting(
        key=key,
        text=node.get("description", ""),
        allowed=allowed,
        defaults={kind: default.strip('"')},
    )


def _resolved(node: Node, defs: Node) -> Node:
    """The record behind a reference, also where it may be null."""
    if "$ref" in node:
        return _resolved(defs[node["$ref"].rpartition("/")[2]], defs)
    parts = [part for part in node.get("anyOf", ()) if part.get("type") != "null"]
    if len(parts) == 1 and ("$ref" in parts[0] or "discriminator" in parts[0]):
        return _resolved(parts[0], defs)
    return node


def _allowed(node: Node, defs: Node) -> str:
    """The values of a leaf in words."""
    if "anyOf" in node:
        return ", or ".join(_allowed(_resolved(p, defs), defs) for p in node["anyOf"])
    if "enum" in node:
        return ", ".join(str(value) for value in node["enum"])
    match node.get("type"):
        case "null":
            return "null"
        case "boolean":
            return "true, false"
        case "integer":
            return f"a whole number{_range(node)}"
        case "number":
            return f"a number{_range(node)}"
        case "array":
            items: Node = node.get("items") or next(
                iter(node.get("prefixItems", ())), {}
            )
            return f"a list of {_allowed(_resolved(items, defs), defs)}"
        case "string":
            return "a path" if node.get("format") == "path" else "text"
        case "object":
            values = node.get("additionalProperties")
            inner = _allowed(_resolved(values, defs), defs) if values else "any"
            return f"names with {inner}"
    return str(node.get("const", "any"))


def _range(node: Node) -> str:
    words = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    )
    return "".join(f" {word} {node[name]:g}" for name, word in words if name in node)


def _one_line(text: str) -> str:
    return " ".join(text.split())
