"""Checks a server with a model that speaks known lines: python benchmarks/serve_check.py MODEL --manifest FILE.

Starts `csm serve MODEL`, and says lines of the manifest with OpenAI's own client, in all six formats, streamed, at once
and as events. Every answer is decoded and transcribed by the bundled Whisper; the lines of the quickstart's recordings
(data_prep/demo/manifest.jsonl) are those its model knows by heart. Prints word error rates and what differs between
streamed and unstreamed answers.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import soxr

from csm.config import AsrKind
from csm.decode import open_audio
from csm.evaluation.text_norm import normalize
from csm.evaluation.wer import word_errors
from csm.judges.whisper import load_recognizer

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
RATE = 24_000
