"""`csm extend-vocabulary`: a model with more text tokens, or with another tokenizer, ready to be trained on.

Every row of the new text table comes from rows of the old one: a piece that the old tokenizer has keeps its row, and
any other begins as the mean of the rows of the pieces that the old tokenizer cuts it into. The text table is only read,
never predicted, so nothing else of the model changes: text that is cut as before is spoken as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from torch import Tensor

from csm.formats.card import model_card
from csm.formats.export import model_directory, write_native_files
from csm.formats.hf_processor import missing_audio_tokens
from csm.formats.layouts import Checkpoint
from csm.formats.tensors import LazyTensor
from csm.text import HFTokenizer, TextTokenizer

TABLE = "text_embeddings.weight"


def extend_vocabulary(
    checkpoint: Checkpoint, tokens: Sequence[str], output: Path, overwrite: bool = False
) -> tuple[int, int]:
    """Writes the checkpoint as a native model directory whose tokenizer has `tokens` as pieces of their own.

    They are found wherever they occur in a text, inside words too. Ids and rows of all others stay. Returns the number
    of pieces that are new, those which the tokenizer had already aside, and the new size of the text table. Raises
    ValueError if none is new, or for a tokenizer that cannot take any.
    """
    old = checkpoint.read_tokenizer()
    if not isinstance(old, HFTokenizer):
        raise ValueError(f"{checkpoint.path}: the byte tokenizer takes no pieces; give another one with --tokenizer")
    pieces = [token for token in dict.fromkeys(tokens) if len(old.encode(token)) > 1]
    if not pieces:
        raise ValueError(f"none of the {len(tokens)} tokens is new: the tokenizer has each as a piece already")
    new = _with_pieces(old, pieces)
    rows = max(checkpoint.config.text_vocab_size, new.vocab_size + missing_audio_tokens(new))
    sources = [[number] for number in range(checkpoint.config.text_vocab_size)]
    sources += [[] for _ in range(rows - len(sources))]
    for piece, number in zip(pieces, range(old.vocab_size, new.vocab_size), strict=True):
        sources[number] = old.encode(piece)
    _write(checkpoint, new, sources, output, overwrite)
    return len(pieces), rows


def change_tokenizer(
    checkpoint: Checkpoint, new: HFTokenizer, output: Path, overwrite: bool = False
) -> tuple[int, int]:
    """Writes the checkpoint as a native model directory with another tokenizer; prompt and normalizer stay.

    Pieces are compared by the bytes that they stand for. Returns the number of pieces that kept their row, and the size
    of the text table.
    """
    old = checkpoint.read_tokenizer()
    new.prompt, new.normalize = old.prompt, old.normalize
    of_bytes = {spelled: number for number, spelled in _pieces(old).items()}
    sources: list[list[int]] = [[] for _ in range(new.vocab_size + missing_audio_tokens(new))]
    kept = 0
    for number, spelled in _pieces(new).items():
        known = of_bytes.get(spelled)
        kept += known is not None
        sources[number] = [known] if known is not None else _cut(spelled, old, of_bytes)
    sources[new.bos_id], sources[new.eos_id] = [old.bos_id], [old.eos_id]
    _write(checkpoint, new, sources, output, overwrite)
    return kept, len(sources)


def _write(
    checkpoint: Checkpoint, tokenizer: HFTokenizer, sources: list[list[int]], output: Path, overwrite: bool
) -> None:
    """sources: for each row of the new table, the rows of the old one whose mean it is; none: the mean of all."""
    weights = checkpoint.original_weights()
    table = weights[TABLE]
    new = LazyTensor((len(sources), table.shape[1]), table.dtype, lambda: _new_table(table.read(), sources))
    changed = replace(
        checkpoint, config=replace(checkpoint.config, text_vocab_size=len(sources)), weights={**weights, TABLE: new}
    )
    with model_directory(output, overwrite) as folder:
        write_native_files(changed, changed.weights, folder, tokenizer=tokenizer)
        (folder / "README.md").write_text(model_card(changed, output.name, "native"), encoding="utf-8")


def _new_table(old: Tensor, sources: list[list[int]]) -> Tensor:
    """old [V, D] -> [len(sources), D]"""
    new = old.float().mean(0).to(old.dtype).repeat(len(sources), 1)
    single = [(row, rows[0]) for row, rows in enumerate(sources) if len(rows) == 1]
    if single:
        to, of = torch.tensor(single).unbind(1)
        new[to] = old[of]
    for row, rows in enumerate(sources):
        if len(rows) > 1:
            new[row] = old[rows].float().mean(0).to(old.dtype)
    return new


def _with_pieces(old: HFTokenizer, pieces: list[str]) -> HFTokenizer:
    full = Tokenizer.from_str(json.dumps(old.content()))
    full.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    numbers = [full.token_to_id(piece) for piece in pieces]
    if numbers != list(range(old.vocab_size, old.vocab_size + len(pieces))):
        raise ValueError("the tokenizer's ids have gaps, so that new pieces would not follow them; renumber its ids")
    return HFTokenizer(full, old.bos, old.eos, old.prompt, old.normalize)


def _cut(spelled: bytes, old: TextTokenizer, of_bytes: dict[bytes, int]) -> list[int]:
    """Old ids that a piece is made of; those of its single bytes where it is a part of a character."""
    try:
        return old.encode(spelled.decode())
    except UnicodeDecodeError:
        return [of_bytes[byte] for byte in (bytes([value]) for value in spelled) if byte in of_bytes]


def _pieces(tokenizer: TextTokenizer) -> dict[int, bytes]:
    """{id: the bytes that the piece stands for} of all but BOS and EOS, whichever way the tokenizer spells them."""
    if not isinstance(tokenizer, HFTokenizer):
        return {number: bytes([number]) for number in range(256)}
    content = tokenizer.content()
    added = {entry["id"]: entry["content"].encode() for entry in content["added_tokens"]}
    alphabet = _byte_alphabet() if '"ByteLevel"' in json.dumps([content["pre_tokenizer"], content["decoder"]]) else {}
    found = {
        number: _spelled(piece, alphabet) for piece, number in tokenizer.vocabulary().items() if number not in added
    }
    return {n: spelled for n, spelled in (found | added).items() if n not in (tokenizer.bos_id, tokenizer.eos_id)}


def _spelled(piece: str, alphabet: dict[str, int]) -> bytes:
    """alphabet: of a byte-level tokenizer; empty for one of SentencePiece's kind, with its space and byte pieces."""
    if alphabet and all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return bytes([int(match[1], 16)])
    return piece.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte: itself where it is printable, else the next one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert alphabet.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet
