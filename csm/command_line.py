"""Words of the command line before Hydra reads them: text is taken as it is, and renamed options are rejected.

Hydra reads every value in a grammar of its own, in which parentheses, commas, `=`, quotes and accented letters are
errors and 1e3 is a number. That suits numbers, lists and dictionaries, but not paths and names. The type of an option,
known from its dataclass, decides: values of text options (str, or str | None) are quoted for Hydra, all other words
stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

_WORD = re.compile(r"(\+\+|\+|)([A-Za-z_][\w.-]*)=(.+)", re.DOTALL)
_ELEMENT = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")(?=,|$)|(?:\$\{[^}]*\}|[^,])*""", re.DOTALL)
_SWEEP = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)


def read_overrides(words: Sequence[str], schema: type, renamed: Mapping[str, str]) -> list[str]:
    """`words` with the values of text options quoted for Hydra; `schema` is the program's root dataclass.

    - A value is taken literally: spaces, brackets, `=`, commas, quotes, accents and digits need no quoting for Hydra.
    - A leading `~/` becomes the home directory; `${...}` stays an interpolation; `null` stays null.
    - A value quoted for Hydra (`'data.path="a b"'`) means what is inside the quotes.
    - With -m or --multirun, commas separate the values of a sweep, each of them taken literally, and Hydra's sweep
      functions (`choice(...)`, `glob(...)`) work. A comma inside a value then needs quotes: `-m 'name="a,b",c'`.

    Words that are quoted already come out unchanged, so the result can be read again. Raises ValueError for a word that
    sets an option by one of its earlier names, the keys of `renamed`.
    """
    multirun = "-m" in words or "--multirun" in words
    return [_read(word, schema, renamed, multirun) for word in words]


def renamed_option(key: str, renamed: Mapping[str, str]) -> str | None:
    """One line for the user if `key` is an earlier name of an option, or a part of one."""
    for old, new in renamed.items():
        if key == old or key.startswith(f"{old}."):
            return f"the option {old} is now called {new}"
    return None


def _read(word: str, schema: type, renamed: Mapping[str, str], multirun: bool) -> str:
    match = _WORD.fullmatch(word)
    if match is None:
        return word
    prefix, key, value = match.groups()
    message = renamed_option(key, renamed)
    if message:
        raise ValueError(message)
    if not _is_text(option_type(schema, key)) or value == "null":
        return word
    if not multirun:
        return f"{prefix}{key}={_quoted(value)}"
    if _SWEEP.fullmatch(value):
        return word
    return f"{prefix}{key}={','.join(_quoted(element) for element in _elements(value))}"


def option_type(schema: type, key: str) -> Any:
    """Declared type of the option `key` ("data.path") below the dataclass `schema`; None if there is no such option."""
    current: Any = schema
    for part in key.split("."):
        if isinstance(current, type) and hasattr(current, "__dataclass_fields__"):
            current = get_type_hints(current).get(part) if part in current.__dataclass_fields__ else None
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        else:
            return None
    return current


def _is_text(declared: Any) -> bool:
    return declared is str or set(get_args(declared)) == {str, NoneType}


def _elements(value: str) -> list[str]:
    """Parts of a sweep: separated by commas that are neither inside a quoted part nor inside an interpolation."""
    elements, position = [], 0
    while True:
        match = _ELEMENT.match(value, position)
        assert match is not None, "the pattern matches an empty string"
        elements.append(match.group())
        if match.end() == len(value):
            return elements
        position = match.end() + 1


def _quoted(value: str) -> str:
    text = _unquoted(value)
    if text == "~" or text.startswith("~/"):
        text = f"{Path.home()}{text[1:]}"
    return QuotedString(text, Quote.single).with_quotes()


def _unquoted(value: str) -> str:
    """The text inside Hydra's quotes, if `value` as a whole is one quoted string."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    try:
        parsed = OverridesParser.create().parse_override(f"x={value}").value()
    except HydraException:
        return value
    return parsed if isinstance(parsed, str) else value
