"""Teacher-forced measures of a model on all frames of a dataset: nothing is generated.

Validation reports sums; here every frame has its row, so that a loss can be read by codebook, by place in the turn, by
turn and by speaker, and every mean has an interval over independent conversations. The depth decoder sees every frame:
there is no amortization, and the weights of the training loss do not enter. Losses are in nats; a model that knows
nothing has ln V, 7.626 with Mimi's 2051 ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from csm.data.dataset import ShardedDataset
from csm.data.packing import pack_row
from csm.data.rows import sample_turns
from csm.data.sample import Sample
from csm.evaluation.statistics import Estimate, estimate_ratio
from csm.frames import Frames, TurnTokens, conversation_frames
from csm.model.csm import CSM
from csm.text import TextTokenizer

DECODER_CHUNK = 256  # frames in the depth decoder at once
POSITION_BINS = (0, 1, 4, 13, 38, 125)
"""First frames of the bins of the frame's place in its turn: from 0, 0.08, 0.32, 1, 3 and 10 s on."""


@dataclass(frozen=True)
class FrameScores:
    """Predictions of F frames, in the order in which they are spoken.

    nats:      float32 [F, K], cross entropy of each code
    top1:      bool [F, K], whether it is the most likely one
    top5:      bool [F, K], whether it is among the five most likely
    end:       bool [F], whether the frame is a turn's end: all zeros
    end_logp:  float32 [F], log-probability that the frame is all zeros, whatever it is
    stops:     bool [F], whether greedy decoding would end the turn here
    """

    nats: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    end: np.ndarray
    end_logp: np.ndarray
    stops: np.ndarray

    @staticmethod
    def join(parts: Sequence[FrameScores]) -> FrameScores:
        names = ("nats", "top1", "top5", "end", "end_logp", "stops")
        return FrameScores(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def rows(self, chosen: slice | np.ndarray) -> FrameScores:
        return FrameScores(
            self.nats[chosen],
            self.top1[chosen],
            self.top5[chosen],
            self.end[chosen],
            self.end_logp[chosen],
            self.stops[chosen],
        )


@torch.inference_mode()
def score_documents(model: CSM, documents: Sequence[Frames]) -> list[FrameScores]:
    """The supervised frames of each document, at least one; it is read alone, though several share a row."""
    codebooks, limit = model.config.num_codebooks, model.config.max_seq_len
    found: list[FrameScores] = []
    for packed in _packed(documents, limit):
        total = sum(map(len, packed))
        row = pack_row(list(packed), total, codebooks, total, np.random.default_rng(0))
        row = row.to(model.codebook0_head.weight.device)
        states = model.backbone_states(row.tokens, row.mask, row.positions, row.attention_mask())[0]  # [S, D]
        (places,) = torch.nonzero(row.targets[0], as_tuple=True)
        before, codes = states[places - 1], row.tokens[0, places, :-1]
        chunks = zip(before.split(DECODER_CHUNK), codes.split(DECODER_CHUNK), strict=True)
        scores = FrameScores.join([_score_chunk(model, *chunk) for chunk in chunks])
        ends = np.cumsum([int(document.targets.sum()) for document in packed])
        found += [scores.rows(slice(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return found


def _packed(documents: Sequence[Frames], limit: int) -> Iterator[list[Frames]]:
    """Consecutive documents that fit a row together."""
    row: list[Frames] = []
    for document in documents:
        if row and sum(map(len, row)) + len(document) > limit:
            yield row
            row = []
        row.append(document)
    if row:
        yield row


def _score_chunk(model: CSM, states: Tensor, codes: Tensor) -> FrameScores:
    """states [M, D] before the frames, codes [M, K]."""
    silence = torch.zeros_like(codes)

    def logp(frames: Tensor) -> Tensor:  # [K, M, V]
        first = model.codebook0_head(states)[None]
        return torch.cat([first, model.decoder_logits(states, frames[:, :-1])]).float().log_softmax(dim=-1)

    said = logp(codes)
    labels = codes.T  # [K, M]
    nats = -said.gather(2, labels[..., None])[..., 0]
    top5 = (said.topk(5, dim=-1).indices == labels[..., None]).any(-1)
    top1 = said.argmax(-1) == labels
    ending = logp(silence)  # [K, M, V], as if all codes before were 0
    return FrameScores(
        nats=nats.T.cpu().numpy(),
        top1=top1.T.cpu().numpy(),
        top5=top5.T.cpu().numpy(),
        end=(codes == 0).all(-1).cpu().numpy(),
        end_logp=ending[..., 0].sum(0).cpu().numpy(),
        stops=(ending.argmax(-1) == 0).all(0).cpu().numpy(),
    )


# ---------------------------------------------------------------------------------------------- all frames


def codebook_groups(codebooks: int) -> dict[str, slice]:
    """Codebook 0, which carries the words; 1-7 and 8-31, which carry ever finer detail of the sound."""
    groups = {"c0": slice(0, 1)}
    for first, last in ((1, 7), (8, 31)):
        if codebooks > first:
            groups[f"c{first}-{min(last, codebooks - 1)}"] = slice(first, min(last + 1, codebooks))
    return groups


@dataclass(frozen=True)
class CodebookScores:
    """Means over frames of one codebook, or of a group of codebooks."""

    nats: Estimate
    top1: Estimate
    top5: Estimate


@dataclass(frozen=True)
class EndScores:
    """How well ends of turns are predicted.

    nats:        cross entropy of the end's frame, all codebooks together
    auc:         chance that an end has a higher probability of ending than another frame; None without both
    false_stops: share of other frames at which greedy decoding would end the turn
    found:       share of ends at which it would
    """

    nats: Estimate
    auc: float | None
    false_stops: Estimate | None
    found: Estimate


@dataclass(frozen=True)
class ConversationSums:
    """Sums over the frames of one conversation, on which runs are compared.

    nats: by codebook; end_nats, found: over its `ends`; false_stops: over the other frames
    """

    key: str
    cluster: str
    frames: int
    nats: list[float]
    ends: int
    end_nats: float
    found: int
    false_stops: int


@dataclass(frozen=True)
class IntrinsicScores:
    """Teacher-forced scores of a split.

    loss:       codebook 0 plus the mean of the others: `val/loss` of training
    codebooks:  by codebook
    groups:     by group of codebooks, see `codebook_groups`
    positions, turns, speakers: loss by place in the turn, number of the turn, and stored speaker id
    cut:        conversations longer than the model's sequence, of which only the leading turns were scored
    sums:       of each conversation
    """

    loss: Estimate
    codebooks: list[CodebookScores]
    groups: dict[str, CodebookScores]
    ends: EndScores
    positions: dict[str, Estimate]
    turns: dict[str, Estimate]
    speakers: dict[str, Estimate]
    frames: int
    conversations: int
    cut: int
    sums: list[ConversationSums]


def intrinsic_scores(
    model: CSM, dataset: ShardedDataset, split: str, tokenizer: TextTokenizer, bootstrap_samples: int = 2000
) -> IntrinsicScores:
    """Scores every supervised frame of a split. Intervals resample groups of conversations (`Sample.group`).

    Raises:
        ValueError: the split holds no supervised frame.
    """
    scores: list[FrameScores] = []
    labels: list[np.ndarray] = []  # [F, 3] each: place in the turn, turn, speaker
    clusters: list[str] = []
    sums: list[ConversationSums] = []
    cut = 0
    pending: list[tuple[Sample, list[TurnTokens]]] = []

    def flush() -> None:
        documents = [conversation_frames(turns, model.config.num_codebooks) for _, turns in pending]
        for (sample, turns), found in zip(pending, score_documents(model, documents), strict=True):
            scores.append(found)
            labels.append(_labels(sample, turns))
            clusters.extend([sample.group] * len(found.end))
            sums.append(_sums(sample, found))
        pending.clear()

    for index in dataset.select(split):
        sample = dataset.read(int(index))
        turns = sample_turns(sample, tokenizer, model.config.max_seq_len)
        cut += len(turns) < len(sample.turns)
        if not any(turn.loss for turn in turns):
            continue
        pending.append((sample, turns))
        if len(pending) == 32:
            flush()
    if pending:
        flush()
    if not scores:
        raise ValueError(f"{dataset.path}: split {split!r} holds no frame to predict; choose another split")

    every = FrameScores.join(scores)
    place, turn, speaker = np.concatenate(labels).T
    names = np.array(clusters)

    def mean(values: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> Estimate:
        values = values[chosen]
        return estimate_ratio(values.tolist(), [1.0] * len(values), names[chosen].tolist(), samples=bootstrap_samples)

    def codebook(which: slice) -> CodebookScores:
        return CodebookScores(*(mean(table[:, which].mean(axis=1)) for table in (every.nats, every.top1, every.top5)))

    loss = frame_loss(every.nats)
    bins = np.searchsorted(POSITION_BINS, place, side="right") - 1
    others = ~every.end
    return IntrinsicScores(
        loss=mean(loss),
        codebooks=[codebook(slice(k, k + 1)) for k in range(every.nats.shape[1])],
        groups={name: codebook(which) for name, which in codebook_groups(every.nats.shape[1]).items()},
        ends=EndScores(
            nats=mean(every.nats.sum(axis=1), every.end),
            auc=auc(every.end_logp, every.end),
            false_stops=mean(every.stops, others) if others.any() else None,
            found=mean(every.stops, every.end),
        ),
        positions={_bin_name(int(b)): mean(loss, bins == b) for b in np.unique(bins)},
        turns={str(t): mean(loss, turn == t) for t in np.unique(turn)},
        speakers={str(s): mean(loss, speaker == s) for s in np.unique(speaker)},
        frames=len(loss),
        conversations=len(sums),
        cut=cut,
        sums=sums,
    )


def frame_loss(nats: np.ndarray) -> np.ndarray:
    """Codebook 0 plus the mean of the others, of each frame: [F, K] -> [F]."""
    return nats[:, 0] + nats[:, 1:].mean(axis=1)


def _sums(sample: Sample, found: FrameScores) -> ConversationSums:
    nats = found.nats.astype(np.float64)
    return ConversationSums(
        key=sample.key,
        cluster=sample.group,
        frames=len(nats),
        nats=nats.sum(axis=0).tolist(),
        ends=int(found.end.sum()),
        end_nats=float(nats[found.end].sum()),
        found=int(found.stops[found.end].sum()),
        false_stops=int(found.stops[~found.end].sum()),
    )


def _labels(sample: Sample, turns: Sequence[TurnTokens]) -> np.ndarray:
    """Place in the turn, turn and speaker of every supervised frame, int64 [F, 3]."""
    rows = []
    for number, (stored, turn) in enumerate(zip(sample.turns, turns, strict=False)):  # of a cut one, the leading turns
        if turn.loss:
            places = np.arange(stored.num_frames + 1)  # the end's frame included
            rows.append(np.stack([places, np.full_like(places, number), np.full_like(places, stored.speaker)], axis=1))
    return np.concatenate(rows)


def _bin_name(number: int) -> str:
    first = POSITION_BINS[number]
    if number + 1 == len(POSITION_BINS):
        return f"{first}-"
    last = POSITION_BINS[number + 1] - 1
    return str(first) if first == last else f"{first}-{last}"


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    from scipy.stats import rankdata

    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    ranks = float(rankdata(scores)[positive].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)
