"""Vocabulary extension and another tokenizer: old text says the same, training goes on, exports load elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoProcessor, CsmForConditionalGeneration

from csm import load_model
from csm.cli import build_parser
from csm.config import CodecConfig, CodecKind, LossConfig
from csm.formats.export import export
from csm.formats.native import write_native
from csm.formats.open import open_checkpoint
from csm.formats.tensors import lazy
from csm.formats.vocabulary import _pieces, change_tokenizer, extend_vocabulary
from csm.frames import TurnTokens, conversation_frames
from csm.model.csm import CSM
from csm.text import ByteTokenizer, HFTokenizer
from csm.training.build import train
from csm.training.loggers import read_lines
from tests.conftest import TINY_OVERRIDES, compose_train
from tests.llama_tokenizer import save_byte_level_tokenizer
from tests.tiny import forward, forward_backward, rows

pytestmark = pytest.mark.usefixtures("narrow_mimi")
NEW = [f"ƒ{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"]  # 40


def turns(tokenizer, texts, model) -> list:
    generator = torch.Generator().manual_seed(1)
    config = model.config
    codes = [torch.randint(1, config.codebook_size, (config.num_codebooks, 5), generator=generator) for _ in texts]
    spoken = [
        TurnTokens(tokenizer.encode_turn(text, n % 2), code)
        for n, (text, code) in enumerate(zip(texts, codes, strict=True))
    ]
    frames = conversation_frames(spoken, config.num_codebooks)
    return rows([[frames]], max_seq_len=96, codebooks=config.num_codebooks)


def loss(model, batch) -> torch.Tensor:
    with torch.no_grad():
        sums = forward(model, batch)
    return sums.losses / sums.frames


def train_on(model, batch, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    found = [float(loss(model, batch).sum())]
    for _ in range(steps):
        optimizer.zero_grad()
        forward_backward(model, batch, 8, LossConfig(), float(batch.targets.sum()))
        optimizer.step()
        found.append(float(loss(model, batch).sum()))
    return found


@pytest.mark.slow
def test_forty_pieces(source, small_mimi, tmp_path):
    """Loss on old text as before, to the bit; new rows are means; training goes on; transformers loads the export."""
    checkpoint = open_checkpoint(source, codec_path=str(small_mimi))
    old_tokenizer, old = checkpoint.read_tokenizer(), checkpoint.load_model()
    batch = turns(old_tokenizer, ["Good morning, how are you?", "Thank you."], old)
    train_on(old, batch, 1)  # a model of whose weights none is as it was drawn
    checkpoint = replace(checkpoint, weights=lazy({name: tensor.clone() for name, tensor in old.state_dict().items()}))
    added, size = extend_vocabulary(checkpoint, [*NEW, "a", NEW[0]], tmp_path / "longer")
    assert (added, size) == (40, 300)
    longer = open_checkpoint(tmp_path / "longer", codec_path=str(small_mimi))
    tokenizer, model = longer.read_tokenizer(), longer.load_model()
    assert model.config == replace(old.config, text_vocab_size=300)
    batch_again = turns(tokenizer, ["Good morning, how are you?", "Thank you."], model)
    assert torch.equal(batch_again.tokens, batch.tokens)
    assert torch.equal(loss(model, batch_again), loss(old, batch))
    table, before = model.text_embeddings.weight, old.text_embeddings.weight
    assert torch.equal(table[:260], before)
    assert tokenizer.encode("xƒby") == [*old_tokenizer.encode("x"), 261, *old_tokenizer.encode("y")]
    torch.testing.assert_close(table[261], before[old_tokenizer.encode("ƒb")].mean(0))

    fresh = turns(tokenizer, ["ƒaƒb ƒc?", "ƒNƒM!"], model)
    found = train_on(model, fresh)
    assert found[-1] < found[0] - 0.01, found
    trained = replace(longer, weights=lazy(model.state_dict()))
    export(trained, tmp_path / "hf", "hf")
    assert open_checkpoint(tmp_path / "hf").read_tokenizer().encode_turn("ƒa is", 1) == tokenizer.encode_turn(
        "ƒa is", 1
    )
    theirs = assert_transformers_reads_alike(tmp_path / "hf", model, tokenizer, "ƒa is")
    assert theirs.config.text_vocab_size == 300 and torch.equal(theirs.embed_text_tokens.weight, table)
    assert theirs.config.vocab_size == 2051  # that of the codebooks


@torch.no_grad()
def assert_transformers_reads_alike(
    folder: Path, model: CSM, tokenizer: HFTokenizer, text: str
) -> CsmForConditionalGeneration:
    """Equal ids of a turn and equal logits after it; returns transformers' model."""
    theirs = CsmForConditionalGeneration.from_pretrained(folder, dtype="float32")
    message = {"role": "1", "content": [{"type": "text", "text": text}]}
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template([message], tokenize=True, return_dict=True)
    assert inputs["input_ids"][0].tolist() == tokenizer.encode_turn(text, 1)
    states = model.backbone_states(*_text_only(inputs["input_ids"][0], 32))
    expected = theirs(input_ids=inputs["input_ids"]).logits
    torch.testing.assert_close(model.codebook0_head(states), expected, atol=1e-4, rtol=1e-4)
    return theirs


def _text_only(ids: torch.Tensor, books: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.nn.functional.pad(ids[:, None], (books, 0))
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -1] = True
    return tokens[None], mask[None], torch.arange(len(ids))[None]


def save_pieces(folder, vocabulary, byte_level: bool) -> HFTokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return HFTokenizer.load(folder)


def test_another_tokenizer(source, small_mimi, tmp_path):
    checkpoint = open_checkpoint(source, codec_path=str(small_mimi))
    before, old = load_model(source).text_embeddings.weight, checkpoint.read_tokenizer()
    pieces = ["a", "b", "\u2581", "\u2581ab", "é", "<0x0A>", "<0xC3>", "ba"]
    new = save_pieces(tmp_path / "new", {piece: n for n, piece in enumerate(pieces)}, byte_level=False)
    kept, size = change_tokenizer(checkpoint, new, tmp_path / "changed")
    # a, b, space, and two single bytes; two rows are left for the ids by which transformers marks audio
    assert (kept, size) == (5, len(pieces) + 2 + 2)
    changed = open_checkpoint(tmp_path / "changed", codec_path=str(small_mimi))
    table = changed.load_model().text_embeddings.weight
    (a,), (b,), (space,) = (old.encode(text) for text in "ab ")
    e = old.encode("é")
    assert torch.equal(table[:3], before[[a, b, space]]) and torch.equal(table[5], before[old.encode("\n")[0]])
    assert torch.equal(table[6], before[e[0]])  # the first byte of é
    for row, ids in ((3, [space, a, b]), (4, e), (7, [b, a])):
        torch.testing.assert_close(table[row], before[ids].mean(0))
    assert torch.equal(table[[new.bos_id, new.eos_id]], before[[old.bos_id, old.eos_id]])
    export(changed, tmp_path / "hf", "hf")
    theirs = assert_transformers_reads_alike(tmp_path / "hf", changed.load_model(), new, "ab ba\né")
    assert theirs.embed_text_tokens.weight.shape[0] == theirs.config.text_vocab_size == size


def test_bytes_are_bytes_however_a_tokenizer_spells_them(tmp_path):
    letters = {letter: n for n, letter in enumerate(["a", "Ġ", "Ã", "©", "Ġa", "ab"])}
    found = _pieces(save_pieces(tmp_path / "level", letters, byte_level=True))
    assert found == {0: b"a", 1: b" ", 2: b"\xc3", 3: b"\xa9", 4: b" a", 5: b"ab"}
    assert _pieces(ByteTokenizer())[255] == b"\xff"


def test_what_cannot_be_extended_is_said(source, tmp_path, small_mimi):
    checkpoint = open_checkpoint(source, codec_path=str(small_mimi))
    with pytest.raises(ValueError, match="none of the 2 tokens is new"):
        extend_vocabulary(checkpoint, ["a", "b"], tmp_path / "out")
    (tmp_path / "bytes").mkdir()
    write_native(
        tmp_path / "bytes",
        weights=checkpoint.weights,
        config=checkpoint.config,
        codec=CodecConfig(),
        codec_info=checkpoint.codec_info,
        fitted_codec=None,
        tokenizer=ByteTokenizer(),
        training={},
    )
    with pytest.raises(ValueError, match="the byte tokenizer takes no pieces; give another one with --tokenizer"):
        extend_vocabulary(open_checkpoint(tmp_path / "bytes"), NEW, tmp_path / "out")
    arguments = build_parser().parse_args(["extend-vocabulary", "x", "--tokens", "no", "--out", "y"])
    assert arguments.tokenizer is None and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_training_goes_on_with_forty_pieces_more(small_dataset, tmp_path, capsys):
    """train.py -> csm extend-vocabulary -> train.py, on a fitted codec: the first step sees the old loss."""
    tokenizer = save_byte_level_tokenizer(tmp_path / "tokenizer")
    words = [*TINY_OVERRIDES, f"data.path={small_dataset}", "tokenizer=llama3", "optim.warmup_steps=1"]
    first = [f"run_dir={tmp_path / 'first'}", f"tokenizer.path={tokenizer}", "tokenizer.vocab_size=260"]
    train(compose_train([*words, *first]))
    (tmp_path / "tokens.txt").write_text("\n".join(NEW) + "\n", encoding="utf-8")
    command = ["extend-vocabulary", str(tmp_path / "first" / "export"), "--tokens", str(tmp_path / "tokens.txt")]
    arguments = build_parser().parse_args([*command, "--out", str(tmp_path / "longer")])
    arguments.run(arguments)
    printed = capsys.readouterr().out
    assert "40 new pieces of 40 tokens, text vocabulary 260 -> 300" in printed
    advice = next(line for line in printed.splitlines() if line.startswith("train it on with "))
    following = advice.removeprefix("train it on with ").split()
    train(compose_train([*words, f"run_dir={tmp_path / 'second'}", *following, "trainer.max_steps=1"]))
    kept = [f"tokenizer.path={tokenizer}", "tokenizer.vocab_size=260", f"init_from={tmp_path / 'first' / 'export'}"]
    train(compose_train([*words, f"run_dir={tmp_path / 'same'}", *kept, "trainer.max_steps=1"]))
    found = [
        next(line["train/loss"] for line in read_lines(tmp_path / run / "metrics.jsonl") if "train/loss" in line)
        for run in ("second", "same")
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    again = open_checkpoint(tmp_path / "second" / "export")
    assert again.config.text_vocab_size == 300 and again.codec.kind is CodecKind.spectral
    assert isinstance(again.load_model(), CSM)
