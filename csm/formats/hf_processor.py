"""The text side of a Hugging Face CSM directory: tokenizer, chat template and preprocessor for `CsmProcessor`.

transformers marks audio in the text with two ids: one stands for each frame, one for the end-of-speech frame. csm-1b
uses two reserved tokens of Llama-3's tokenizer for it (128002 and 128003), renamed <|AUDIO|> and <|audio_eos|>.
"""

from __future__ import annotations

import json
import logging
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from csm.text import (
    CONFIG_FILE,
    PROMPT_KEY,
    TOKENIZER_FILE,
    HFTokenizer,
    TextTokenizer,
    check_prompt,
    strips_text,
)

log = logging.getLogger(__name__)

AUDIO, AUDIO_EOS = "<|AUDIO|>", "<|audio_eos|>"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
RESERVED = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- set kinds = parts | map(attribute='type') | list -%}
{%- if not kinds or kinds[0] != 'text' -%}
{{ raise_exception('message ' ~ loop.index0 ~ ': its content must begin with a text') }}
{%- endif -%}
{%- if not (message['role'] | string).isdecimal() -%}
{{ raise_exception('message ' ~ loop.index0 ~ ': its role must be a speaker number such as "0"') }}
{%- endif -%}
{%- if kinds != ['text', 'audio'] and not loop.last -%}
{{ raise_exception('message ' ~ loop.index0 ~ ': all but the last message need one text and one audio') }}
{%- endif -%}
{%- if kinds != ['text', 'audio'] and kinds != ['text'] -%}
{{ raise_exception('message ' ~ loop.index0 ~ ': its content must be one text, or one text and one audio') }}
{%- endif -%}
{{ bos_token ~ PROMPT ~ eos_token }}
{%- if kinds | length == 2 -%}
{{ '<|AUDIO|><|audio_eos|>' }}
{%- endif -%}
{%- endfor -%}
"""
"""PROMPT stands for the expression that writes a turn's speaker and text."""

PREPROCESSOR_CONFIG = {
    "feature_extractor_type": "EncodecFeatureExtractor",
    "processor_class": "CsmProcessor",
    "feature_size": 1,
    "sampling_rate": 24_000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "chunk_length_s": None,
    "overlap": None,
}


@dataclass(frozen=True)
class SpecialIds:
    """Ids that config.json and generation_config.json repeat."""

    bos_token_id: int
    pad_token_id: int
    audio_token_id: int
    audio_eos_token_id: int


def write_processor_files(folder: Path, tokenizer: TextTokenizer, text_vocab_size: int) -> SpecialIds:
    """Writes tokenizer, chat template and preprocessor files into `folder`.

    Audio is marked by <|AUDIO|> and <|audio_eos|> if the tokenizer has them, else by Llama-3's first two reserved
    tokens, which are renamed, else by two new ids, if text_vocab_size leaves rows for them. Raises ValueError if it
    does not, if new ids cannot follow the tokenizer's own, for the byte tokenizer, for one with more ids than
    text_vocab_size, and for one that would give a turn other ids in transformers.
    """
    if not isinstance(tokenizer, HFTokenizer):
        raise ValueError(
            "the byte tokenizer has no Hugging Face form; export with --format native, or train with tokenizer.kind=hf"
        )
    if tokenizer.vocab_size > text_vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's text vocabulary {text_vocab_size}; export with "
            "the tokenizer the model was trained with"
        )
    content = tokenizer.content()
    audio, audio_eos = _mark_audio(content, tokenizer.vocab_size, text_vocab_size)
    full = Tokenizer.from_str(json.dumps(content))
    for name, expected in ((AUDIO, audio), (AUDIO_EOS, audio_eos)):
        found = full.token_to_id(name)  # the library numbers added tokens itself, whatever the file says
        if found != expected:
            raise ValueError(
                f"the tokenizer would give {name} the id {found} in place of {expected}: its ids have gaps, or the "
                "name is an ordinary token of its vocabulary; number its ids without gaps and make the name a "
                "special token"
            )
    full.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos} $A {tokenizer.eos}",
        special_tokens=[(tokenizer.bos, tokenizer.bos_id), (tokenizer.eos, tokenizer.eos_id)],
    )
    _check_spelling(full, tokenizer)
    full.save(str(folder / TOKENIZER_FILE))
    names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.eos}
    _write_json(folder / CONFIG_FILE, {**tokenizer.config(), **names, "processor_class": "CsmProcessor"})
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR_CONFIG)
    (folder / CHAT_TEMPLATE_FILE).write_text(chat_template(tokenizer.prompt), encoding="utf-8")
    return SpecialIds(tokenizer.bos_id, pad_token_id=audio, audio_token_id=audio, audio_eos_token_id=audio_eos)


def missing_audio_tokens(tokenizer: HFTokenizer) -> int:
    """Ids that an export for transformers has to add to this tokenizer to mark audio: 0 to 2."""
    vocabulary = tokenizer.vocabulary()
    return sum(
        not {name, reserved} & vocabulary.keys() for name, reserved in zip((AUDIO, AUDIO_EOS), RESERVED, strict=True)
    )


def chat_template(prompt: str) -> str:
    """The chat template that writes turns as `prompt` says."""
    parts = []
    for literal, field, *_ in string.Formatter().parse(prompt):
        if literal:
            parts.append(json.dumps(literal, ensure_ascii=False))
        if field == "speaker":
            parts.append("message['role']")
        elif field == "text":
            parts.append("parts[0]['text'].lstrip()" if strips_text(prompt) else "parts[0]['text']")
    return CHAT_TEMPLATE.replace("PROMPT", " ~ ".join(parts))


def read_tokenizer(folder: Path) -> HFTokenizer:
    """The tokenizer of a directory in Hugging Face's layout, with the prompt that its files state.

    Exports of this project name the prompt in tokenizer_config.json; in others the chat template shows it. Raises
    FileNotFoundError if there is no tokenizer, ValueError if it cannot be read.
    """
    tokenizer = HFTokenizer.load(folder)
    file = folder / CONFIG_FILE
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file = folder / CHAT_TEMPLATE_FILE
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if PROMPT_KEY not in config and isinstance(template, str):
        shown = _prompt_of_template(template, tokenizer)
        if shown is None:
            log.warning("%s: its chat template is not CSM's; turns are written as %s", folder, tokenizer.prompt)
        else:
            tokenizer.prompt = shown
    return tokenizer


def _prompt_of_template(template: str, tokenizer: HFTokenizer) -> str | None:
    """The prompt by which a chat template writes a turn; None if it is not one of CSM."""
    messages = [{"role": "7", "content": [{"type": "text", "text": "speech"}]}]
    names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    try:
        turn = ImmutableSandboxedEnvironment().from_string(template).render(messages=messages, **names).strip()
        written = turn.removeprefix(tokenizer.bos).removesuffix(tokenizer.eos)
        prompt = written.replace("7", "{speaker}").replace("speech", "{text}")
        check_prompt(prompt, "chat template")
    except (TemplateError, ValueError, TypeError):
        return None
    return prompt


def _mark_audio(content: dict[str, Any], vocab_size: int, text_vocab_size: int) -> list[int]:
    """Gives `content`, a tokenizer.json, the two audio tokens; returns their ids."""
    added = {entry["content"]: entry for entry in content["added_tokens"]}
    ids = []
    for name, reserved in zip((AUDIO, AUDIO_EOS), RESERVED, strict=True):
        if name not in added:
            if reserved in added:
                entry = added[reserved]
                entry["content"] = name
                _rename_in_vocabulary(content, reserved, name)
            elif vocab_size < text_vocab_size:
                entry = {"id": vocab_size, "content": name, "special": True}
                entry |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                content["added_tokens"].append(entry)
                vocab_size += 1
            else:
                raise ValueError(
                    f"the tokenizer has neither {name} nor {reserved}, and the model's text vocabulary of "
                    f"{text_vocab_size} leaves no row for a new one; transformers needs two ids to mark audio: export "
                    "with --format native or sesame"
                )
            added[name] = entry
        ids.append(added[name]["id"])
    return ids


def _check_spelling(full: Tokenizer, tokenizer: HFTokenizer) -> None:
    """Raises ValueError if a turn that follows BOS as text gets other ids than training gave it.

    transformers tokenizes the chat template's text, BOS and EOS included. Some pre-tokenizers (Metaspace with
    prepend_scheme "first") treat the start of a text differently from other text.
    """
    sample = "a b"
    expected = tokenizer.encode_turn(sample, 0)
    written = tokenizer.prompt.format(speaker=0, text=sample)
    found = full.encode(f"{tokenizer.bos}{written}{tokenizer.eos}", add_special_tokens=False).ids
    if found != expected:
        raise ValueError(
            f"transformers would tokenize a turn as {found} where the model was trained with {expected}: this "
            "tokenizer's pre-tokenizer treats the start of a text apart; export with --format native or sesame"
        )


def _rename_in_vocabulary(content: dict[str, Any], old: str, new: str) -> None:
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict) and old in vocabulary:
        vocabulary[new] = vocabulary.pop(old)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
