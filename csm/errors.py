"""Mistakes of a program's user: one line on stderr, exit code 2."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from csm.command_line import renamed_option
from csm.config import RENAMED_OPTIONS

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user wants tracebacks, as in every Hydra program."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns a ValueError, an OSError, a missing package or a mistake in the configuration into one line, exit code 2.

    A Hydra program needs it twice: around the whole, for mistakes that Hydra finds while composing, and inside its
    main function, since Hydra prints lines of its own about any error that leaves it.
    """
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors, instead of printing them and exiting with 1
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, HydraException, OmegaConfBaseException) as error:
        if TRACEBACKS:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def _one_line(error: BaseException) -> str:
    """The messages of an error and of the one it came from, without line breaks."""
    message = " ".join(str(error).split())
    if isinstance(error, HydraException) and error.__cause__ is not None:
        message += f" ({str(error.__cause__).splitlines()[0].strip()})"
    key = re.search(r"full_key: (\S+)", message)  # of an option in a YAML file: the command line is checked before
    renamed = renamed_option(key[1], RENAMED_OPTIONS) if key else None
    if renamed:
        message += f": {renamed}"
    return message
