"""A codec and a tokenizer for tests of everything around them."""

from __future__ import annotations

import torch

from csm.codec.base import CodecInfo
from csm.inference.generator import Generator
from csm.text import ByteTokenizer
from tests.tiny import CODEBOOK_SIZE, TEXT_VOCAB, K, tiny_model


class ToyCodec:
    """Code c0 of a frame fills its 4 samples. `encoded` counts the calls of `encode`."""

    info = CodecInfo("toy", "0", K, CODEBOOK_SIZE, 12.5, 50)
    name, num_codebooks, codebook_size, frame_rate, sample_rate = "toy", K, CODEBOOK_SIZE, 12.5, 50
    samples_per_frame = 4
    device = torch.device("cpu")
    encoded = 0

    def encode(self, audio):
        self.encoded += 1
        return torch.ones(audio.shape[0], K, -(-audio.shape[-1] // 4), dtype=torch.int64)

    def decode(self, codes):
        return codes[:, :1].float().repeat_interleave(4, dim=-1)

    def streaming_decoder(self, slots):
        return ToyDecoder()


class ToyDecoder:
    delay = 0

    def decode(self, codes, active):
        return codes[:, 0].float().repeat_interleave(4, dim=-1) * active[:, None]

    def reset(self, slot):
        pass

    def finish(self, slot):
        return torch.zeros(0)


class ToyTokenizer(ByteTokenizer):
    vocab_size = TEXT_VOCAB

    def encode_turn(self, text, speaker):
        return [1, speaker + 2, *(ord(c) % TEXT_VOCAB for c in text), 0]


def toy_generator(**options) -> Generator:
    return Generator(tiny_model(), ToyCodec(), ToyTokenizer(), **options)
