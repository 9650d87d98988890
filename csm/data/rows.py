"""Datasets of batches: one for each optimizer step (training), or over a whole split (validation)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from csm.arrangement import arranged, by_frame, turn_positions
from csm.config import CodeLayout, DataConfig, LossConfig
from csm.data.dataset import ShardedDataset
from csm.data.packing import RowBatch, StepBatch, num_slots, pack_row, stack_rows
from csm.data.plan import EpochPlan
from csm.data.sample import Sample
from csm.data.stream import StepSpec
from csm.frames import Frames, TurnTokens, conversation_frames, is_eos_frame
from csm.text import TextTokenizer


def sample_turns(
    sample: Sample,
    tokenizer: TextTokenizer,
    max_seq_len: int,
    speakers: dict[int, int] | None = None,
    predicted: int | None = None,
    without_text: np.ndarray | None = None,
    layout: CodeLayout = CodeLayout.depth,
) -> list[TurnTokens]:
    """The turns of a stored conversation, tokenized, with its speaker ids renamed by `speakers`.

    A conversation longer than `max_seq_len` keeps the leading turns that fit as a whole.

    predicted:    stored speaker id whose turns alone are predicted; None: those of all speakers
    without_text: bool [turns], turns whose text is empty; they fit where they fit with it
    layout:       in which positions are counted
    """
    turns, total = [], 0
    for number, turn in enumerate(sample.turns):
        speaker = turn.speaker if speakers is None else speakers[turn.speaker]
        codes = torch.from_numpy(sample.turn_codes(turn))
        loss = turn.loss and predicted in (None, turn.speaker)
        tokens = TurnTokens(tokenizer.encode_turn(turn.text, speaker), codes, loss)
        total += turn_positions(tokens, layout)
        if total > max_seq_len:
            break
        if without_text is not None and without_text[number]:
            tokens.text = tokenizer.encode_turn("", speaker)
        turns.append(tokens)
    return turns


def only_last(turns: list[TurnTokens]) -> list[TurnTokens]:
    """The turns of a document, of which only the last is predicted."""
    return [*(replace(turn, loss=False) for turn in turns[:-1]), *turns[-1:]]


def learned_turns(
    sample: Sample, tokenizer: TextTokenizer, data: DataConfig, layout: CodeLayout = CodeLayout.depth
) -> list[TurnTokens]:
    """The turns of a conversation that fit into a row, with their texts and stored speaker ids, as validation reads
    them: predicted are those of `data.loss_turns`."""
    predicted = predicted_speaker(data.loss_turns)
    turns = sample_turns(sample, tokenizer, data.max_seq_len, predicted=predicted, layout=layout)
    return only_last(turns) if data.loss_turns == "last" else turns


def predicted_speaker(loss_turns: str) -> int | None:
    """The N of `speaker:N`; None for `all` and `last`. Raises ValueError for anything else."""
    kind, _, number = loss_turns.partition(":")
    if loss_turns in ("all", "last"):
        return None
    if kind != "speaker" or not number.isdecimal():
        raise ValueError(f"data.loss_turns={loss_turns} must be all, last or speaker:N, such as speaker:0")
    return int(number)


def drop_context(turns: list[TurnTokens], chance: float, rng: np.random.Generator) -> list[list[TurnTokens]]:
    """Splits a conversation into independent documents, with probability `chance` at each boundary between turns.

    The model thus also learns to speak with little or no context, and no turn is lost.
    """
    parts = [turns[:1]]
    for turn in turns[1:]:
        if rng.random() < chance:
            parts.append([])
        parts[-1].append(turn)
    return parts


def drop_frames(document: Frames, chance: float, rng: np.random.Generator) -> None:
    """Hides each frame of `document` with probability `chance`, in place: nothing of it is present in the input, and
    what is to be predicted stays. End-of-speech frames stay: they say where a turn ends, which no text tells."""
    hidden = torch.from_numpy(rng.random(len(document)) < chance)
    hidden &= document.mask[:, 0] & ~document.eos
    document.mask[hidden] = False


def drop_codebooks(document: Frames, chance: float, rng: np.random.Generator) -> None:
    """With probability `chance`, hides all but the first n codebooks of every frame of `document`, in place. ln(n) is
    uniform: the first codebooks say most. End-of-speech frames stay whole, since generation appends them whole."""
    drawn, number = rng.random(2)
    if drawn >= chance:
        return
    num_codebooks = document.mask.shape[1] - 1
    kept = int(num_codebooks**number)  # 1 to K-1
    document.mask[~document.eos, kept:num_codebooks] = False


def noisy_codes(
    row: RowBatch,
    chance: float,
    codebook_size: int,
    rng: np.random.Generator,
    layout: CodeLayout = CodeLayout.depth,
) -> Tensor:
    """`row.tokens [1, S, K+1]` with each code that is present replaced, with probability `chance`, by a random one of
    0..codebook_size-1. End-of-speech frames stay."""
    tokens = row.tokens.clone()
    codes, present = by_frame(tokens[..., :-1], layout), by_frame(row.mask[..., :-1], layout)
    drawn = torch.from_numpy(rng.integers(codebook_size, size=codes.shape))
    chosen = torch.from_numpy(rng.random(codes.shape) < chance)
    chosen &= present & ~is_eos_frame(codes)[..., None]
    codes[chosen] = drawn[chosen]
    return tokens


def permuted_speakers(sample: Sample, rng: np.random.Generator) -> dict[int, int]:
    """A random permutation of the conversation's speaker ids, so that neither the id nor the order of speaking reveals
    who speaks."""
    ids = sorted({turn.speaker for turn in sample.turns})
    return dict(zip(ids, rng.permutation(ids).tolist(), strict=True))


class TrainRows(Dataset):
    """Maps a StepSpec to the StepBatch of one rank.

    Every random choice for a row (speaker ids, dropped texts, contexts and frames, decoder frames) is drawn from (seed,
    step, row of the global step), so it does not depend on the number of ranks, workers or microbatches.
    """

    def __init__(
        self,
        datasets: dict[str, ShardedDataset],
        tokenizer: TextTokenizer,
        data: DataConfig,
        loss: LossConfig,
        seed: int,
        layout: CodeLayout = CodeLayout.depth,
    ) -> None:
        self.datasets, self.tokenizer, self.data, self.seed, self.layout = datasets, tokenizer, data, seed, layout
        self.predicted = predicted_speaker(data.loss_turns)
        ratio = loss.decoder_frame_ratio if layout is CodeLayout.depth else 1  # a single stack learns every code
        self.slots = num_slots(data.max_seq_len, ratio)
        codec = next(iter(datasets.values())).codec
        self.num_codebooks, self.codebook_size = codec.num_codebooks, codec.codebook_size

    def __getitem__(self, spec: StepSpec) -> StepBatch:
        per_pass = self.data.micro_batch_size
        rows, keys = [], []
        for row in spec.rows:
            samples = [self.datasets[row.source].read(int(number)) for number in row.samples]
            rows.append(self._row(samples, np.random.default_rng((self.seed, spec.step, row.index))))
            keys.append([sample.key for sample in samples])
        batches = [stack_rows(rows[first : first + per_pass]) for first in range(0, len(rows), per_pass)]
        return StepBatch(
            microbatches=batches,
            frames=sum(int(batch.targets.sum()) for batch in batches),
            positions=sum(int((batch.documents >= 0).sum()) for batch in batches),
            keys=keys,
            cursor=spec.cursor,
        )

    def _row(self, samples: list[Sample], rng: np.random.Generator) -> RowBatch:
        data, documents = self.data, []
        for sample in samples:
            speakers = permuted_speakers(sample, rng) if data.permute_speakers else None
            without_text = rng.random(len(sample.turns)) < data.text_dropout if data.text_dropout else None
            turns = sample_turns(
                sample, self.tokenizer, data.max_seq_len, speakers, self.predicted, without_text, self.layout
            )
            for part in drop_context(turns, data.context_dropout, rng):
                turns = only_last(part) if data.loss_turns == "last" else part
                documents.append(conversation_frames(turns, self.num_codebooks))
        for document in documents:
            if data.frame_dropout:
                drop_frames(document, data.frame_dropout, rng)
            if data.codebook_dropout:
                drop_codebooks(document, data.codebook_dropout, rng)
        documents = [arranged(document, self.layout) for document in documents]
        row = pack_row(documents, data.max_seq_len, self.num_codebooks, self.slots, rng)
        if data.code_noise:
            row.inputs = noisy_codes(row, data.code_noise, self.codebook_size, rng, self.layout)
        return row


class ValidationRows(Dataset):
    """Batches of one rank over a split of all sources.

    The depth decoder sees every frame; speaker ids are the stored ones, and neither text nor context is dropped. The
    predicted turns are those of `data.loss_turns`, as in training. All ranks have
    equally many batches, so the last rows may be empty. The rows are those of the first epoch, window by window, so
    that only a few remote shards are read at a time.

    datasets, lengths: by source; see csm/data/lengths.py for the lengths
    """

    def __init__(
        self,
        datasets: dict[str, ShardedDataset],
        lengths: dict[str, np.ndarray],
        tokenizer: TextTokenizer,
        data: DataConfig,
        split: str,
        rank: int,
        world_size: int,
        layout: CodeLayout = CodeLayout.depth,
    ) -> None:
        self.datasets, self.tokenizer, self.data, self.layout = datasets, tokenizer, data, layout
        self.rank, self.world_size = rank, world_size
        self.rows: list[tuple[str, np.ndarray]] = []
        for name, dataset in datasets.items():
            shards = dataset.shards(split)
            plan = EpochPlan(name, shards, lengths[name], data.max_seq_len, data.window_shards, seed=0)
            self.rows += [(name, row) for window in range(plan.windows) for row in plan.rows(0, window)]

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.data.micro_batch_size * self.world_size))

    def __getitem__(self, index: int) -> RowBatch:
        first = (index * self.world_size + self.rank) * self.data.micro_batch_size
        return stack_rows([self._row(i) for i in range(first, first + self.data.micro_batch_size)])

    def _row(self, index: int) -> RowBatch:
        num_codebooks = next(iter(self.datasets.values())).codec.num_codebooks
        documents = []
        if index < len(self.rows):
            name, samples = self.rows[index]
            for number in samples:
                sample = self.datasets[name].read(int(number))
                turns = learned_turns(sample, self.tokenizer, self.data, self.layout)
                documents.append(arranged(conversation_frames(turns, num_codebooks), self.layout))
        length = self.data.max_seq_len
        return pack_row(documents, length, num_codebooks, length, np.random.default_rng(0))
