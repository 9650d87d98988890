"""Llama-3's real tokenizer as a tokenizer.json, from the vocabulary file inside the llama-models package."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

PATTERN = (  # of the released tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = {128_000: "<|begin_of_text|>", 128_001: "<|end_of_text|>"}


def save_llama_tokenizer(folder: Path) -> Path:
    """Writes tokenizer.json and tokenizer_config.json with 128256 ids into `folder`."""
    package = Path(importlib.util.find_spec("llama_models").submodule_search_locations[0])
    ranks = {}
    for line in (package / "llama3" / "tokenizer.model").read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    to_unicode = _byte_alphabet()

    def spelled(token: bytes) -> str:
        return "".join(to_unicode[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
        merges += [(rank, first, second, spelled(a), spelled(b)) for first, second, a, b in known]
    model = models.BPE(
        {spelled(token): rank for token, rank in ranks.items()},
        [(a, b) for *_, a, b in sorted(merges)],
        fuse_unk=False,
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [NAMED.get(id, f"<|reserved_special_token_{id - 128_002}|>") for id in range(128_000, 128_256)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": NAMED[128_000], "eos_token": NAMED[128_001]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte, recovered from the tokenizers library."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    assert sorted(alphabet.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return alphabet
