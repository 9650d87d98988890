"""The prompt of a model in Hugging Face's layout: in its chat template, and read from that."""

from __future__ import annotations

import json
import logging

import pytest
from transformers import AutoProcessor

from csm.formats.hf_processor import CHAT_TEMPLATE_FILE, read_tokenizer, write_processor_files
from csm.text import CONFIG_FILE, MISO_PROMPT, PROMPT_KEY, SESAME_PROMPT, HFTokenizer
from tests.llama_tokenizer import save_byte_level_tokenizer


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory):
    return save_byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("prompt", [SESAME_PROMPT, MISO_PROMPT, '"{speaker}": {text}', "<speaker_{speaker}>{text}"])
def test_transformers_writes_the_prompt_of_the_tokenizer(small_vocabulary, prompt, tmp_path):
    tokenizer = HFTokenizer.load(small_vocabulary, prompt)
    write_processor_files(tmp_path, tokenizer, 260)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "csm", "transformers_version": "4.57.0"}))
    message = {"role": "7", "content": [{"type": "text", "text": "  Is it 7?"}]}
    found = AutoProcessor.from_pretrained(tmp_path).apply_chat_template([message], tokenize=True, return_dict=True)
    assert found["input_ids"][0].tolist() == tokenizer.encode_turn("  Is it 7?", 7)
    assert read_tokenizer(tmp_path).prompt == prompt
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    del config[PROMPT_KEY]  # as others write it: the chat template shows the prompt
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    assert read_tokenizer(tmp_path).prompt == prompt


def test_the_normalizer_of_texts_is_kept_in_files_for_transformers(small_vocabulary, tmp_path):
    write_processor_files(tmp_path, HFTokenizer.load(small_vocabulary, normalize="english"), 260)
    assert read_tokenizer(tmp_path).normalize == "english"


def test_a_template_that_is_not_csms_is_said(small_vocabulary, tmp_path, caplog):
    write_processor_files(tmp_path, HFTokenizer.load(small_vocabulary), 260)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    del config[PROMPT_KEY]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    published = "{%- for message in messages %}\n    {%- for item in message['content'] %}{{- '<|begin_of_text|>[' + "
    published += "message['role'] + ']' + item['text'] + '<|end_of_text|>' }}{%- endfor %}\n{%- endfor %}"
    (tmp_path / CHAT_TEMPLATE_FILE).write_text(published)
    assert read_tokenizer(tmp_path).prompt == SESAME_PROMPT and not caplog.records
    for other in ("<|im_start|>{{ messages[0]['content'] }}<|im_end|>", "{{ messages.nothing.there }}", "{% if"):
        (tmp_path / CHAT_TEMPLATE_FILE).write_text(other)
        with caplog.at_level(logging.WARNING):
            assert read_tokenizer(tmp_path).prompt == SESAME_PROMPT
        assert "its chat template is not CSM's; turns are written as [{speaker}]{text}" in caplog.messages.pop()


def test_one_token_may_begin_and_end_turns(small_vocabulary, tmp_path):
    """As in tokenizers of base models that have a single special token, SmolLM2's for one."""
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "tokenizer.json").write_text((small_vocabulary / "tokenizer.json").read_text())
    names = {"bos_token": "<|end_of_text|>", "eos_token": {"content": "<|end_of_text|>", "special": True}}
    (tmp_path / "single" / CONFIG_FILE).write_text(json.dumps(names))
    tokenizer = HFTokenizer.load(tmp_path / "single")
    assert tokenizer.bos_id == tokenizer.eos_id
    write_processor_files(tmp_path, tokenizer, 260)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "csm", "transformers_version": "4.57.0"}))
    message = {"role": "7", "content": [{"type": "text", "text": "Yes."}]}
    found = AutoProcessor.from_pretrained(tmp_path).apply_chat_template([message], tokenize=True, return_dict=True)
    assert found["input_ids"][0].tolist() == tokenizer.encode_turn("Yes.", 7)
    assert read_tokenizer(tmp_path).encode_turn("Yes.", 7) == tokenizer.encode_turn("Yes.", 7)
