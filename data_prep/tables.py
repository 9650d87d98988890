"""Parquet tables of dataclasses: schemas follow from the type hints, nested dataclasses become structs."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from csm.files import write_atomically

Row = TypeVar("Row")

_SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}


@cache
def schema_of(cls: type) -> pa.Schema:
    """The schema of rows of dataclass `cls`: scalars, enums (by value), lists, `X | None`, dataclasses of these."""
    return pa.schema([pa.field(name, _type_of(hint)) for name, hint in _hints(cls).items()])


def write_rows(path: Path, rows: Iterable[Any], cls: type) -> None:
    """Writes rows of `cls`, atomically. Equal rows give equal bytes."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema_of(cls))
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_rows(path: Path, cls: type[Row]) -> list[Row]:
    """Inverse of `write_rows`. Raises ValueError if the file is damaged or holds rows of another class."""
    try:
        table = pq.read_table(path, memory_map=True)
        return [from_dict(cls, row) for row in table.to_pylist()]
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as a table of {cls.__name__} ({error}); delete it and run again"
        ) from error


def from_dict(cls: type[Row], values: dict[str, Any]) -> Row:
    """Inverse of `dataclasses.asdict`. Raises KeyError for a missing field."""
    row_type: type = cls  # mypy does not accept `type[Row]` as hashable
    return cls(**{name: _value(hint, values[name]) for name, hint in _hints(row_type).items()})


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: _without_none(hints[f.name]) for f in fields(cls)}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = [part for part in get_args(hint) if part is not type(None)]
    return hint


def _type_of(hint: Any) -> pa.DataType:
    if get_origin(hint) is list:
        return pa.list_(_type_of(get_args(hint)[0]))
    if hint in _SCALARS:
        return _SCALARS[hint]
    if issubclass(hint, Enum):
        return pa.string()
    return pa.struct([pa.field(name, _type_of(inner)) for name, inner in _hints(hint).items()])


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        return [_value(inner, entry) for entry in value] if is_dataclass(inner) else value
    if hint in _SCALARS:
        return value
    return hint(value) if issubclass(hint, Enum) else from_dict(hint, value)
