"""Speaker diarization by clustering: embeddings of windows are clustered, then each step of speech gets a cluster.

The number of speakers follows from the tree of Ward's method, read from its root: a cluster is two speakers if the
distance between the mean embeddings of its halves exceeds `cluster_threshold`. The closer the halves are in size, the
less distance is required (down to BALANCED of it), if both are large: in recordings of one voice, small groups of odd
utterances are further apart than two similar voices on a telephone line. Windows across a change of speaker would form
clusters of their own, so the windows whose sound changes most are not clustered. Speech shorter than a window is one,
repeated to its length: short answers make a speaker, too. Who speaks between two pauses is told from that speech alone,
or a short answer would be heard together with its neighbors. The constants were set for this encoder, on recordings of
one to three voices, among them the telephone call of the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.cluster.hierarchy import ClusterNode, linkage, to_tree

from csm.judges.speaker import DIM, FRAMES_PER_SECOND, Resemblyzer
from data_prep.config import DiarizeConfig
from data_prep.records import Span
from data_prep.speech.pauses import Read, between_pauses, changes_in_pauses

WINDOW = 160  # frames (1.6 s), what the encoder was trained on
HOP = 25
FINE_WINDOW = 100
MIN_WINDOW = 50  # of a shorter stretch, 0.5 s, the voice cannot be told
MIN_VOICE_WINDOWS = 5  # a smaller cluster is not a speaker
MAX_WINDOWS = 4000  # clustered, as the tree needs memory by their square; the others go to the nearest voice
MAX_READ_SECONDS = 60.0
BALANCED = 0.58
SURE_WINDOWS = 20  # in each half, for less than the full distance to suffice
STEADY_SHARE = 0.7  # of the windows is clustered: those that change least from their first to their last second
SWITCH_PENALTY = 0.1
"""Cosine similarity, summed over steps, that a change of speaker must gain."""


PAUSE_PENALTY = 0.02
"""The same of a change in a pause."""


@dataclass
class _Piece:
    """Speech that is read at once, and its embeddings in steps of HOP frames."""

    start: float
    end: float
    coarse: np.ndarray  # [windows, 256]; empty if it is too short
    change: np.ndarray  # [windows], cosine distance of the first and the last second of each
    fine: np.ndarray  # [steps, 256]


def cluster_speakers(
    encoder: Resemblyzer, read: Read, spans: Sequence[Span], cfg: DiarizeConfig
) -> list[tuple[float, float, int]]:
    """(start, end, speaker) by start, covering `spans` exactly; speakers are numbered from 0 as they appear.

    Args:
        encoder: of the voices.
        read: samples at 16 kHz from start to end seconds.
        spans: where somebody speaks.
        cfg: `cluster_threshold`, `max_speakers`.
    """
    pieces = [_embedded(encoder, read, start, end) for span in spans for start, end in _short(span)]
    means = speaker_means(_steady_windows(pieces), cfg.cluster_threshold, cfg.max_speakers)
    found: list[tuple[float, float, int]] = []
    pauses: set[float] = set()
    for piece in pieces:
        parts = _between_pauses(encoder, read, piece) if len(means) > 1 else [piece]
        pauses.update(part.start for part in parts)
        for start, end, who in _divided(parts, means):
            if found and found[-1][2] == who and found[-1][1] == start:
                found[-1] = (found[-1][0], end, who)
            else:
                found.append((start, end, who))
    found = changes_in_pauses(found, read, frozenset(pauses))
    order: dict[int, int] = {}
    return [(start, end, order.setdefault(who, len(order))) for start, end, who in found]


def speaker_means(windows: np.ndarray, threshold: float, max_speakers: int) -> np.ndarray:
    """Mean embeddings, unit length [speakers, D], of the speakers in `windows` [n, D]; one at least."""
    if len(windows) > MAX_WINDOWS:
        windows = windows[np.linspace(0, len(windows) - 1, MAX_WINDOWS).round().astype(int)]
    if len(windows) < 2 * MIN_VOICE_WINDOWS:
        return _unit(windows.mean(axis=0, keepdims=True)) if len(windows) else np.zeros((1, windows.shape[1]))
    leaves = [to_tree(linkage(windows.astype(np.float64), "ward"))]
    done: list[ClusterNode] = []
    while leaves:
        leaves.sort(key=lambda node: (node.dist, node.id))
        node = leaves.pop()  # the widest
        halves = _halves(node)
        if halves and len(leaves) + len(done) + 2 <= max_speakers and _are_two(*halves, windows, threshold):
            leaves += halves
        else:
            done.append(node)
    return np.concatenate([_mean(node, windows) for node in sorted(done, key=lambda node: node.id)])


def _halves(node: ClusterNode) -> tuple[ClusterNode, ClusterNode] | None:
    """The two parts of a cluster, ignoring parts too small to be a speaker."""
    while not node.is_leaf():
        small, large = sorted((node.left, node.right), key=lambda half: half.count)
        if small.count >= MIN_VOICE_WINDOWS:
            return small, large
        node = large
    return None


def _are_two(small: ClusterNode, large: ClusterNode, windows: np.ndarray, threshold: float) -> bool:
    share = small.count / (small.count + large.count)
    needed = threshold
    if small.count >= SURE_WINDOWS:
        needed *= min(1.0, BALANCED / (4 * share * (1 - share)))
    return 1 - float((_mean(small, windows) @ _mean(large, windows).T).item()) > needed


def _mean(node: ClusterNode, windows: np.ndarray) -> np.ndarray:
    return _unit(windows[node.pre_order()].mean(axis=0, keepdims=True))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def most_likely(similarity: np.ndarray, pauses: Collection[int] = ()) -> np.ndarray:
    """The speaker of each step (Viterbi), int [steps], from similarities [steps, speakers].

    pauses: steps before which there is a pause
    """
    steps, speakers = similarity.shape
    other = 1 - np.eye(speakers)
    came_from = np.zeros((steps, speakers), int)
    score = similarity[0]
    for step in range(1, steps):
        options = score[:, None] - (PAUSE_PENALTY if step in pauses else SWITCH_PENALTY) * other
        came_from[step] = options.argmax(axis=0)
        score = options.max(axis=0) + similarity[step]
    path = [int(score.argmax())]
    for step in range(steps - 1, 0, -1):
        path.append(int(came_from[step, path[-1]]))
    return np.array(path[::-1])


def _short(span: Span) -> list[tuple[float, float]]:
    """A span in equal parts that are short enough to be read at once."""
    parts = int(-(-(span.end - span.start) // MAX_READ_SECONDS)) or 1
    edges = [span.start + (span.end - span.start) * part / parts for part in range(parts)] + [span.end]
    return list(pairwise(edges))


def _embedded(encoder: Resemblyzer, read: Read, start: float, end: float) -> _Piece:
    coarse, fine = encoder.windows(read(start, end), (WINDOW, FINE_WINDOW), HOP)
    frames = len(coarse[0])
    if frames < WINDOW:
        coarse = [np.resize(coarse[0], (WINDOW, coarse[0].shape[1]))] if frames >= MIN_WINDOW else []
    found, seconds = encoder.embed_windows(coarse), encoder.embed_windows(fine)
    last = (WINDOW - FINE_WINDOW) // HOP  # steps from the first to the last second of a window
    change = np.array(
        [1 - seconds[i] @ seconds[i + last] if i + last < len(seconds) else 0.0 for i in range(len(found))]
    )
    return _Piece(start, end, found, change, seconds)


def _between_pauses(encoder: Resemblyzer, read: Read, piece: _Piece) -> list[_Piece]:
    """The parts of a piece between pauses, with windows of their own."""
    parts = between_pauses(read, Span(piece.start, piece.end))
    return [_embedded(encoder, read, part.start, part.end) for part in parts] if len(parts) > 1 else [piece]


def _divided(parts: Sequence[_Piece], means: np.ndarray) -> list[tuple[float, float, int]]:
    """(start, end, speaker) in consecutive parts of speech."""
    first = np.cumsum([0, *(len(part.fine) for part in parts)]).tolist()  # step of each part
    steps = most_likely(np.concatenate([part.fine for part in parts]) @ means.T, first)
    return [
        stretch
        for part, (start, end) in zip(parts, pairwise(first), strict=True)
        for stretch in _stretches(steps[start:end], part)
    ]


def _steady_windows(pieces: Sequence[_Piece]) -> np.ndarray:
    """Embeddings of the windows to be clustered, [n, 256]."""
    windows = np.concatenate([np.zeros((0, DIM), np.float32), *(piece.coarse for piece in pieces)])
    change = np.concatenate([np.zeros(0), *(piece.change for piece in pieces)])
    whole = change[change > 0]  # a short stretch has no change that could be measured
    return windows[change <= np.quantile(whole, STEADY_SHARE)] if len(whole) else windows


def _stretches(steps: np.ndarray, piece: _Piece) -> list[tuple[float, float, int]]:
    """Steps as times: a change of speaker is midway between the centers of two windows."""
    changes = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
    edge = [piece.start + ((at - 0.5) * HOP + FINE_WINDOW / 2) / FRAMES_PER_SECOND for at in changes]
    edge = [piece.start, *(min(at, piece.end) for at in edge[1:-1]), piece.end]
    speakers = [int(steps[at]) for at in changes[:-1]]
    return [(start, end, who) for (start, end), who in zip(pairwise(edge), speakers, strict=True)]
