"""Chooses the watermark of a program: a backend by name, the first one that is installed, or none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

import torch

from csm.watermark.audioseal import AudioSeal
from csm.watermark.base import THRESHOLD, UNMARKED, Watermark, WatermarkUnavailable
from csm.watermark.perth import REMEDY, Perth
from csm.watermark.silentcipher import SilentCipher

BACKENDS: dict[str, Callable[[], Watermark]] = {"perth": Perth, "audioseal": AudioSeal, "silentcipher": SilentCipher}
"""In the order in which `auto` tries them."""

ENTRY_POINTS = "csm.watermarks"
"""Group of entry points by which packages add backends: a name, and a callable that returns a `Watermark`."""

CHOICES = ("auto", "required", "none", *BACKENDS)


def load_watermark(name: str = "auto") -> Watermark:
    """The watermark that a program uses for what it gives out.

    name: "auto" takes the first backend that is installed, and warns once where there is none; "required" does so and
    raises instead, also where the backend does not find its own mark; "none" is `UNMARKED`; else a backend's name.

    Raises ValueError for an unknown name, and WatermarkUnavailable (one, too) where the package of a named or required
    backend is missing. Weights are loaded at the first use, or here if required.
    """
    if name == "none":
        return UNMARKED
    if name in ("auto", "required"):
        found = _first_available()
        if name == "required":
            if found is None:
                raise WatermarkUnavailable(f"a watermark is required and no backend is installed: {REMEDY}")
            _check(found)
        elif found is None:
            _warn_once()
        return found or UNMARKED
    return _backend(name)


def backend_names() -> list[str]:
    return [*BACKENDS, *(point.name for point in entry_points(group=ENTRY_POINTS))]


def _backend(name: str) -> Watermark:
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()()
    if name not in BACKENDS:
        raise ValueError(f"unknown watermark {name!r}: choose auto, required, none, {', '.join(backend_names())}")
    return BACKENDS[name]()


def _first_available() -> Watermark | None:
    for name in backend_names():
        try:
            return _backend(name)
        except WatermarkUnavailable:
            continue
    return None


def _check(watermark: Watermark) -> None:
    """Raises unless the backend finds its mark in a second of noise, and none in it before."""
    rate = 24_000
    noise = 0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(0))
    before, after = watermark.detect(noise, rate), watermark.detect(watermark.embed(noise, rate), rate)
    if not before < THRESHOLD <= after:
        raise WatermarkUnavailable(
            f"{watermark.name} does not find its own mark (confidence {before:.2f} before, {after:.2f} after): "
            "reinstall it, or choose another backend"
        )


@cache
def _warn_once() -> None:
    warnings.warn(
        f"no watermark backend is installed, so speech leaves unmarked: {REMEDY}, or say watermark='none'", stacklevel=4
    )
