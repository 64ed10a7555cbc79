"""Prints the public names and signatures: `python -m tests.support.public_api`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from pydantic import BaseModel

import sfmprep


def describe() -> str:
    """Every public name, one a line, with what a caller may write; members below it."""
    lines = []
    for name in sfmprep.__all__:
        found = getattr(sfmprep, name)
        if inspect.isclass(found):
            lines += [f"class {name}{_bases(found)}", *_members(found)]
        elif callable(found):
            lines.append(f"{name}{inspect.signature(found)}")
        else:
            lines.append(f"{name}: {type(found).__name__}")
    text = "".join(f"{line}\n" for line in lines)
    return re.sub(r"<function (\w+) at \w+>|<class '([\w.]+)'>", r"\1\2", text)


def _bases(kind: type) -> str:
    """The error that an error is; of other classes their bases are no promise."""
    bases = [b.__name__ for b in kind.__bases__ if issubclass(b, Exception)]
    return f"({', '.join(bases)})" if bases else ""


def _members(kind: type) -> Iterator[str]:
    if issubclass(kind, Exception):
        return
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            default = field.get_default()
            if isinstance(default, BaseModel):  # its own defaults are listed with it
                default = type(default)
            yield f"    {name}" if field.is_required() else f"    {name} = {default!r}"
    else:
        yield f"    __init__{inspect.signature(kind)}"
    for name in sorted(vars(kind) if issubclass(kind, BaseModel) else dir(kind)):
        if name.startswith("_"):
            continue
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property):
            yield f"    {name}: property"
        elif isinstance(member, staticmethod | classmethod):
            yield f"    {name}{inspect.signature(getattr(kind, name))}, on the class"
        elif inspect.isfunction(member):
            yield f"    {name}{inspect.signature(member)}"


if __name__ == "__main__":
    print(describe(), end="")
