"""Chooses the watermark of a program: a backend by name, the first one that works, or none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

import torch
from torch import Tensor

from csm.watermark.audioseal import AudioSeal
from csm.watermark.base import THRESHOLD, UNMARKED, Watermark, WatermarkUnavailable
from csm.watermark.perth import REMEDY, Perth
from csm.watermark.silentcipher import SilentCipher

BACKENDS: dict[str, Callable[[], Watermark]] = {"perth": Perth, "audioseal": AudioSeal, "silentcipher": SilentCipher}
"""In the order in which `auto` tries them."""

ENTRY_POINTS = "csm.watermarks"
"""Group of entry points by which packages add backends: a name, and a callable that returns a `Watermark`."""

CHOICES = ("auto", "required", "none", *BACKENDS)

RATE = 24_000  # Hz of the speech


def load_watermark(name: str = "auto", streams: bool = False) -> Watermark:
    """The watermark that a program uses for what it gives out.

    name: "auto" takes the first backend that is installed and whose weights load, and warns once where there is none;
    "required" does so and raises instead, also where the backend does not find its own mark; "none" is `UNMARKED`; else
    a backend's name. streams: whether speech is marked while it is spoken, which not every backend can. Without it,
    "auto" takes an installed Perth as it is, whose import takes longer than a short command: one that does not import
    raises WatermarkUnavailable when it is first used.

    Raises ValueError for an unknown name and for a named backend that cannot mark streams, and WatermarkUnavailable
    (one, too) where the package of a named or required backend is missing.
    """
    if name == "none":
        return UNMARKED
    if name in ("auto", "required"):
        found, failures = _first_working(streams, lazy=name == "auto" and not streams)
        if name == "required":
            if found is None:
                raise WatermarkUnavailable(f"a watermark is required and no backend works{failures}: {REMEDY}")
            _check(found)
        elif found is None:
            _warn_once(failures)
        return found or UNMARKED
    watermark = _backend(name)
    if streams:
        watermark.stream(RATE)
    return watermark


def backend_names() -> list[str]:
    return [*BACKENDS, *(point.name for point in entry_points(group=ENTRY_POINTS))]


def _backend(name: str) -> Watermark:
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()()
    if name not in BACKENDS:
        raise ValueError(f"unknown watermark {name!r}: choose auto, required, none, {', '.join(backend_names())}")
    return BACKENDS[name]()


def _first_working(streams: bool, lazy: bool) -> tuple[Watermark | None, str]:
    """The first backend that marks, and why those before it do not, in brackets; nothing of those not installed.

    lazy: Perth, whose weights are in its wheel, is not tried.
    """
    failures = []
    for name in backend_names():
        try:
            watermark = _backend(name)
        except WatermarkUnavailable:
            continue
        try:
            if streams:
                watermark.stream(RATE)
            if not (lazy and isinstance(watermark, Perth)):
                watermark.embed(_noise(), RATE)
        except Exception as error:  # of whatever package
            failures.append(f"{name}: {error}")
            continue
        return watermark, ""
    return None, f" ({'; '.join(failures)})" if failures else ""


def _noise() -> Tensor:
    return 0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))


def _check(watermark: Watermark) -> None:
    """Raises unless the backend finds its mark in a second of noise, and none in it before."""
    noise = _noise()
    before, after = watermark.detect(noise, RATE), watermark.detect(watermark.embed(noise, RATE), RATE)
    if not before < THRESHOLD <= after:
        raise WatermarkUnavailable(
            f"{watermark.name} does not find its own mark (confidence {before:.2f} before, {after:.2f} after): "
            "reinstall it, or choose another backend"
        )


@cache
def _warn_once(failures: str) -> None:
    warnings.warn(
        f"no watermark backend works{failures}, so speech leaves unmarked: {REMEDY}, or say watermark='none'",
        stacklevel=4,
    )
