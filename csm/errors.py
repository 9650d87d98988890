"""How the command-line programs report what their user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_errors() -> Iterator[None]:
    """Prints a ValueError or OSError as one line on stderr and exits with code 2.

    HYDRA_FULL_ERROR=1 shows the traceback instead, as everywhere in Hydra programs.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
