"""The tokenizer and processor files of a Hugging Face directory, with Llama-3's real tokenizer."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, CsmProcessor

from csm.audio import save_wav
from csm.formats import hf
from csm.formats.hf_processor import write_processor_files
from csm.formats.registry import KNOWN, LLAMA_TOKENIZER
from csm.frames import TurnTokens, conversation_frames
from csm.inference.messages import segments_from_messages
from csm.text import MISO_PROMPT, SESAME_PROMPT, ByteTokenizer, HFTokenizer

AUDIO_ID, AUDIO_EOS_ID = 128_002, 128_003


@pytest.fixture(scope="module")
def exported(llama_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    ids = write_processor_files(folder, HFTokenizer.load(llama_tokenizer), 128_256)
    assert (ids.bos_token_id, ids.audio_token_id, ids.audio_eos_token_id) == (128_000, AUDIO_ID, AUDIO_EOS_ID)
    # The processor asks config.json of the directory for the kind of model, and for the version that wrote it.
    config = {"model_type": "csm", "transformers_version": hf.TRANSFORMERS_VERSION}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def processor(exported):
    processor = AutoProcessor.from_pretrained(exported)
    assert isinstance(processor, CsmProcessor)
    return processor


def message(speaker: int, text: str, audio: np.ndarray | None = None) -> dict:
    content = [{"type": "text", "text": text}]
    if audio is not None:
        content.append({"type": "audio", "audio": audio})
    return {"role": str(speaker), "content": content}


def tokenize(processor, messages):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True)


@pytest.mark.slow
def test_transformers_has_nothing_to_say_about_the_tokenizer(exported, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    AutoProcessor.from_pretrained(exported)
    # transformers 5 takes text ids for codes, in the released config.json too
    assert [text for text in caplog.messages if not text.startswith("Model config: ")] == []
    if not transformers.__version__.startswith("4."):
        return
    for file in exported.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "csm"}))
    AutoProcessor.from_pretrained(tmp_path)
    assert "regex" in caplog.text  # without a version in config.json, 4 takes the tokenizer for a faulty one


def test_golden_ids(processor):
    """The values of transformers' own test-suite (tests/models/csm/test_processing_csm.py)."""
    golden = "128000 58 15 60 2028 374 264 1296 11914 13 128001 128002 128002 128002 128003"
    found = tokenize(processor, [message(0, "This is a test sentence.", np.zeros(4096, dtype=np.float32))])
    assert found["input_ids"].tolist() == [[int(value) for value in golden.split()]]
    assert "token_type_ids" not in found


MISO_IDS = [128000, 58, 15, 60, 1115, 374, 264, 1296, 11914, 13, 128001]  # 1115 is " This", 2028 "This"


def test_golden_ids_of_known_models(llama_tokenizer):
    """With Llama-3's published vocabulary; Sesame's are the values above. Marvis has another: test_marvis.py."""
    golden = {SESAME_PROMPT: [*MISO_IDS[:4], 2028, *MISO_IDS[5:]], MISO_PROMPT: MISO_IDS}
    tokenizer = HFTokenizer.load(llama_tokenizer)
    known = [model for model in KNOWN if not model.name.startswith("marvis")]
    assert {model.tokenizer for model in known} == {LLAMA_TOKENIZER}
    assert {model.prompt for model in known} == golden.keys()
    for model in known:
        tokenizer.prompt = model.prompt
        assert tokenizer.encode_turn("This is a test sentence.", 0) == golden[model.prompt], model.name


def test_positions_equal_our_layout(processor, llama_tokenizer):
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=n).astype(np.float32) * 0.1 for n in (1920, 1921, 30_000)]
    messages = [
        message(0, "Hello, <|AUDIO|> there!", clips[0]),
        message(7, "  Two  spaces, ümlaut — 12345.", clips[1]),
        message(0, "", clips[2]),
        message(12, "And now?"),
    ]
    segments = segments_from_messages(messages, 24_000)
    assert [segment.speaker for segment in segments] == [0, 7, 0, 12] and segments[-1].audio is None
    tokenizer = HFTokenizer.load(llama_tokenizer)
    turns = []
    for segment in segments:
        frames = None if segment.audio is None else -(-len(segment.audio) // 1920)
        codes = None if frames is None else torch.ones(3, frames, dtype=torch.int64)
        turns.append(TurnTokens(tokenizer.encode_turn(segment.text, segment.speaker), codes))
    frames = conversation_frames(turns, 3)
    ours = torch.where(frames.mask[:, -1], frames.tokens[:, -1], AUDIO_ID)
    ours[frames.eos] = AUDIO_EOS_ID
    # A special token's name in a text is plain characters here; transformers would take it for audio. So not there.
    messages[0]["content"][0]["text"] = "Hello, there!"
    turns[0] = TurnTokens(tokenizer.encode_turn("Hello, there!", 0), turns[0].codes)
    assert AUDIO_ID not in tokenizer.encode_turn("Hello, <|AUDIO|> there!", 0)
    frames = conversation_frames(turns, 3)
    ours = torch.where(frames.mask[:, -1], frames.tokens[:, -1], AUDIO_ID)
    ours[frames.eos] = AUDIO_EOS_ID
    assert tokenize(processor, messages)["input_ids"][0].tolist() == ours.tolist()


def test_context_files_are_read_at_the_rate_that_is_asked_for(processor, tmp_path):
    """The call of docs/checkpoints.md; without sampling_rate, some versions of transformers read files at 16 kHz."""
    save_wav(tmp_path / "hello.wav", 0.1 * torch.sin(torch.arange(round(1.3 * 24_000)) / 20), 24_000)
    part = {"type": "audio", "path": str(tmp_path / "hello.wav")}
    messages = [{"role": "0", "content": [{"type": "text", "text": "Hello."}, part]}, message(1, "How are you?")]
    segment, _ = segments_from_messages(messages, 24_000)
    found = processor.apply_chat_template(messages, tokenize=True, return_dict=True, sampling_rate=24_000)
    assert found["input_values"].shape[-1] == len(segment.audio) == 31_200
    assert (found["input_ids"] == AUDIO_ID).sum() == -(-31_200 // 1920)


def test_template_refuses_what_it_cannot_lay_out(processor):
    clip = np.zeros(1920, dtype=np.float32)
    with pytest.raises(Exception, match="message 0: all but the last message need one text and one audio"):
        tokenize(processor, [message(0, "Hello."), message(1, "Hi.", clip)])
    texts, clips = ([{"type": kind, kind: value}] * 2 for kind, value in (("text", "Hi."), ("audio", clip)))
    for content in (texts, [*texts, clips[0]], [texts[0], *clips], [clips[0], texts[0]], []):
        with pytest.raises(Exception, match="message 1: its content must be"):
            tokenize(processor, [message(0, "Hello.", clip), {"role": "1", "content": content}])
    with pytest.raises(Exception, match="message 1: its role must be a speaker number"):
        tokenize(processor, [message(0, "Hello.", clip), {**message(1, "Hi."), "role": "user"}])


def test_roles_may_be_numbers(processor):
    for speaker in (0, 3):
        as_number = tokenize(processor, [{**message(speaker, "Hello."), "role": speaker}])
        assert torch.equal(as_number["input_ids"], tokenize(processor, [message(speaker, "Hello.")])["input_ids"])


def test_our_own_loader_reads_the_directory(exported, llama_tokenizer):
    before, after = HFTokenizer.load(llama_tokenizer), HFTokenizer.load(exported)
    for text in ("This is a test sentence.", "ümlaut <|AUDIO|> \n\n 123"):
        assert after.encode_turn(text, 4) == before.encode_turn(text, 4)
    assert (after.bos_id, after.eos_id, after.vocab_size) == (128_000, 128_001, 128_256)


LETTERS = {letter: n for n, letter in enumerate("abc[]0123")}


def save_small(folder, vocabulary, specials=()):
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", *specials)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return HFTokenizer.load(folder)


@pytest.fixture
def small_tokenizer(tmp_path):
    return save_small(tmp_path, LETTERS)


def test_audio_tokens_that_are_there_keep_their_ids(tmp_path):
    tokenizer = save_small(tmp_path, LETTERS, ("<|audio_eos|>", "<|reserved_special_token_0|>", "<|AUDIO|>"))
    ids = write_processor_files(tmp_path, tokenizer, tokenizer.vocab_size)
    assert (ids.audio_token_id, ids.audio_eos_token_id) == (len(LETTERS) + 4, len(LETTERS) + 2)
    assert HFTokenizer.load(tmp_path).encode_turn("abc", 1) == tokenizer.encode_turn("abc", 1)


@pytest.mark.parametrize("vocabulary", [{**LETTERS, "z": 50}, {**LETTERS, "<|AUDIO|>": 9}], ids=["gap", "ordinary"])
def test_ids_that_the_written_file_would_not_have_are_refused(tmp_path, vocabulary):
    tokenizer = save_small(tmp_path, vocabulary)
    size = tokenizer.vocab_size
    with pytest.raises(ValueError, match=rf"would give <\|AUDIO\|> the id \d+ in place of {size}: its ids have gaps"):
        write_processor_files(tmp_path, tokenizer, size + 2)


@pytest.mark.parametrize(
    ("pre_tokenizer", "same"),
    [
        (pre_tokenizers.Metaspace(prepend_scheme="first"), False),
        (pre_tokenizers.Metaspace(prepend_scheme="always"), True),
        (pre_tokenizers.Metaspace(prepend_scheme="never"), True),
    ],
)
def test_tokenizers_that_treat_the_start_of_a_text_apart_are_refused(tmp_path, pre_tokenizer, same):
    tokenizer = Tokenizer(models.BPE({**LETTERS, "\u2581": 9}, []))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = HFTokenizer.load(tmp_path)
    if same:
        write_processor_files(tmp_path, loaded, loaded.vocab_size + 2)
        return
    with pytest.raises(ValueError, match="this tokenizer's pre-tokenizer treats the start of a text apart"):
        write_processor_files(tmp_path, loaded, loaded.vocab_size + 2)


@pytest.mark.parametrize("leading_space", [False, True])
def test_a_leading_space_is_written_in_transformers_too(tmp_path, leading_space):
    """Byte-level tokenizers of GPT-2's kind may put one before a text, and then before a turn, which follows BOS."""
    letters = {character: number for number, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE({**letters, "Ġ[": 256}, [("Ġ", "[")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=leading_space)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = HFTokenizer.load(tmp_path)
    expected = loaded.encode_turn("Is it?", 1)
    assert expected[:3] == [257, *([256] if leading_space else [letters["["]]), letters["1"]]
    out = tmp_path / "out"
    out.mkdir()
    write_processor_files(out, loaded, loaded.vocab_size + 2)
    (out / "config.json").write_text(json.dumps({"model_type": "csm"}))
    found = tokenize(AutoProcessor.from_pretrained(out), [message(1, "Is it?")])
    assert found["input_ids"][0].tolist() == expected


def test_other_tokenizers_get_two_new_ids_if_there_is_room(small_tokenizer, tmp_path):
    size = small_tokenizer.vocab_size
    with pytest.raises(ValueError, match=f"text vocabulary of {size + 1} leaves no row"):
        write_processor_files(tmp_path, small_tokenizer, size + 1)
    with pytest.raises(ValueError, match=f"has {size} ids, the model's text vocabulary {size - 1}"):
        write_processor_files(tmp_path, small_tokenizer, size - 1)
    with pytest.raises(ValueError, match="the byte tokenizer has no Hugging Face form"):
        write_processor_files(tmp_path, ByteTokenizer(), 300)
    out = tmp_path / "out"
    out.mkdir()
    ids = write_processor_files(out, small_tokenizer, size + 2)
    assert (ids.audio_token_id, ids.audio_eos_token_id) == (size, size + 1)
    (out / "config.json").write_text(json.dumps({"model_type": "csm"}))
    found = tokenize(AutoProcessor.from_pretrained(out), [message(1, "abc", np.zeros(1920, dtype=np.float32))])
    assert found["input_ids"][0].tolist() == [*small_tokenizer.encode_turn("abc", 1), size, size + 1]
