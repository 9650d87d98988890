"""The corpus's own text tokenizer: byte pairs merged over its training texts, in which a known word is one token.

Text costs positions that predict nothing: with bytes they are three of five in desk, with these tokens one of three.
Bytes remain its alphabet, so unknown words are spelled.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from csm.text import HFTokenizer

BOS, EOS = "<s>", "</s>"
VOCAB_SIZE = 4096
"""At most; merging ends earlier when every word of the texts is a token."""


def fit_tokenizer(texts: Iterable[str]) -> HFTokenizer:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) over `texts`. Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    # A word at the beginning of a turn, after "[speaker]", is written without a space: it is a token of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return HFTokenizer(tokenizer, BOS, EOS)


def write_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Fits a tokenizer to `texts`, saves it in `folder` and returns its number of ids."""
    tokenizer = fit_tokenizer(texts)
    tokenizer.save(folder)
    return tokenizer.vocab_size
