"""Inaudible marks in speech that leaves the project's programs, by which it is recognized as synthetic.

base.py            the protocol of a watermark, and that of none
streaming.py       marks on audio that comes in chunks
perth.py           Resemble's Perth, whose weights are part of its wheel: the default
audioseal.py       Meta's AudioSeal, with weights of the hub
silentcipher.py    Sony's SilentCipher, as in Sesame's release
choice.py          load_watermark: a backend by name, auto, required, none
command.py         csm watermark
"""

from csm.watermark.base import UNMARKED, MarkStream, Watermark, WatermarkUnavailable
from csm.watermark.choice import load_watermark

__all__ = ["UNMARKED", "MarkStream", "Watermark", "WatermarkUnavailable", "load_watermark"]
