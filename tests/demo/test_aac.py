"""The player's stream is one AAC stream, whatever the chunks."""

from __future__ import annotations

from io import BytesIO

import av
import pytest
import torch

from csm.demo.stream import FRAME, AacStream, adts_seconds


@pytest.mark.parametrize("chunk", [1_920, 15_360, 777])
def test_chunks_are_one_stream_without_seams(chunk):
    tone = 0.3 * torch.sin(torch.arange(48_000) * 2 * torch.pi * 220 / 24_000)
    stream = AacStream(24_000)
    packed = [*(stream.encode(piece) for piece in tone.split(chunk)), stream.finish()]
    assert sum(adts_seconds(data, 24_000) for data in packed) == pytest.approx(48 * FRAME / 24_000)
    frames = av.open(BytesIO(b"".join(packed)), format="aac").decode(audio=0)
    heard = torch.cat([torch.from_numpy(frame.to_ndarray()[0]) for frame in frames])[FRAME : FRAME + len(tone)]
    # A seam would be a gap or a click: the tone's level stays, within the codec's loss, in every 50 ms after the onset.
    levels = heard[2_400:44_400].unfold(0, 1_200, 1_200).square().mean(1).sqrt()
    assert ((levels - 0.3 / 2**0.5).abs() < 0.01).all()
