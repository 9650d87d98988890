"""How often each recording of a unit was begun and not ended: counted before the work, so that a file which kills its
process is known to have done so.

`attempts.jsonl` in the unit's folder, one line for an event:

    {"begin": ["pod/ep1"], "stage": "vad"}      work on these recordings begins
    {"end": ["pod/ep1"]}                        it ended, with a result or an exception that was dealt with
    {"timeout": ["pod/ep1"]}                    it took too long; the process ends itself

Lines are written, not forced to the disk: they survive the process, and a machine that goes down was rarely brought
down by a recording.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

ATTEMPTS_FILE = "attempts.jsonl"


class Attempts:
    """Of one unit; only one process writes at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ATTEMPTS_FILE
        self.unended: Counter[str] = Counter()  # recording -> how often work on it died
        self.timeouts: Counter[str] = Counter()
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            self._count(line)
        self._torn = bool(text) and not text.endswith("\n")

    def _count(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:  # the process died within the line: the last one, of an event that was not to be
            return
        self.unended.update(event.get("begin", []))
        self.unended.subtract(event.get("end", []))
        self.timeouts.update(event.get("timeout", []))

    def begin(self, recordings: list[str], stage: str) -> None:
        self._append({"begin": recordings, "stage": stage})

    def end(self, recordings: list[str]) -> None:
        self._append({"end": recordings})

    def timeout(self, recordings: list[str]) -> None:
        self._append({"timeout": recordings})

    def _append(self, event: dict[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn + json.dumps(event) + "\n")
        self._torn = False
