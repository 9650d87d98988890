"""The documentation of options, read from the dataclasses: for `--help` and docs/options.md."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from textwrap import TextWrapper
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING as REQUIRED
from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Option:
    """One option of a program."""

    key: str
    """Full name, such as data.global_batch_size; NAME stands for a key that the user chooses."""
    type: str
    value: str
    """Value in the composed configuration, as written on the command line; REQUIRED: none yet."""
    doc: str
    choices: tuple[tuple[str, str], ...]
    """Values of an enumeration and their documentation."""


@dataclass(frozen=True)
class Section:
    """A dataclass of options: the root or one group."""

    key: str
    """Name of the group, such as data; empty for the root."""
    doc: str
    options: list[Option]


def sections(schema: type, config: DictConfig, key: str = "") -> Iterator[Section]:
    """All options below the dataclass `schema`, its own first, then group by group.

    `config` is the root of a composed configuration, which supplies the values.
    """
    hints, docs = get_type_hints(schema), field_docs(schema)
    options: list[Option] = []
    groups: list[tuple[str, type]] = []
    for field in fields(schema):
        name, declared = f"{key}.{field.name}" if key else field.name, hints[field.name]
        if is_dataclass(declared):
            groups.append((name, declared if isinstance(declared, type) else type(declared)))
            continue
        value = "" if "NAME" in name else _value(config, name)
        options.append(Option(name, _type_name(declared), value, docs[field.name], _choices(declared)))
        if get_origin(declared) is dict and is_dataclass(get_args(declared)[1]):
            groups.append((f"{name}.NAME", get_args(declared)[1]))
    if options:
        yield Section(key, inspect.cleandoc(schema.__doc__ or ""), options)
    for name, group in groups:
        yield from sections(group, config, name)


def options_text(schema: type, config: DictConfig) -> str:
    """The options with the values of `config` for the terminal, at most 100 columns wide."""
    wrapper = TextWrapper(width=100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    blocks = []
    for section in sections(schema, config):
        lines = []
        for option in section.options:
            lines.append(f"  {option.key}={option.value}{' (required)' if option.value == REQUIRED else ''}")
            lines.extend(wrapper.wrap(option.doc))
            for value, doc in option.choices:
                lines.extend(wrapper.wrap(f"{value}: {doc}"))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def options_markdown(schema: type, config: DictConfig) -> str:
    """The options with the values of `config` as Markdown: a heading and a list for each group."""
    blocks = []
    for section in sections(schema, config):
        lines = [f"### `{section.key}`", "", section.doc, ""] if section.key else [section.doc, ""]
        for option in section.options:
            value = {"": "", REQUIRED: ", required"}.get(option.value, f" = `{option.value}`")
            lines.append(f"- **`{option.key}`** (`{option.type}`{value}): {option.doc}")
            lines.extend(f"    - `{choice}`: {doc}" for choice, doc in option.choices)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


@lru_cache
def field_docs(schema: type) -> dict[str, str]:
    """Documentation of each member of a dataclass or enumeration: the string literal below it.

    Raises ValueError naming a member that has none.
    """
    body = _classes(schema.__module__)[schema.__name__].body
    docs = {}
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                match following:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        docs[name] = " ".join(text.split())
                    case _:
                        raise ValueError(f"{schema.__module__}.{schema.__name__}.{name}: no docstring below the field")
    return docs


@lru_cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _enumeration(declared: Any) -> type[Enum] | None:
    """The enumeration that an option's values are of, if it has one; it may also be null."""
    parts = (declared, *get_args(declared))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Enum)), None)


def _choices(declared: Any) -> tuple[tuple[str, str], ...]:
    found = _enumeration(declared)
    docs = field_docs(found) if found else {}
    return tuple((member.name, docs[member.name]) for member in found or ())


def _type_name(declared: Any) -> str:
    if found := _enumeration(declared):
        null = ["null"] if NoneType in get_args(declared) else []
        return " | ".join([*(member.name for member in found), *null])
    if get_origin(declared) is dict:
        return "dict"
    name = declared.__name__ if isinstance(declared, type) and not get_args(declared) else str(declared)
    return name.replace("typing.", "").replace("None", "null").lower()


def _value(config: DictConfig, key: str) -> str:
    """Value of an option without its interpolations resolved; a dictionary shows its keys alone."""
    group, _, name = key.rpartition(".")
    parent = OmegaConf.to_container(OmegaConf.select(config, group) if group else config, resolve=False)
    assert isinstance(parent, dict), f"{group} is a dataclass"
    return _text(parent[name])


def _text(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Enum():
            return value.name
        case list():
            return f"[{','.join(map(_text, value))}]"
        case dict():
            return f"{{{','.join(value)}}}"
        case _:
            return str(value)
