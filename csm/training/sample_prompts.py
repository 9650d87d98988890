"""Turns that are spoken as audio samples, chosen once, at the start of a training.

    split "val" of each source -> its conversations in their order -> the last turn that training would learn
    -> taken from the sources by their weights -> with as much context as the model has positions for

Nothing is random: a resumed run speaks the same turns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from csm.config import TrainConfig
from csm.data.rows import learned_turns, predicted_speaker
from csm.data.sample import Turn
from csm.data.sources import Source
from csm.frames import newest_turns
from csm.inference.segments import Segment
from csm.text import TextTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A turn of a dataset to be spoken after the turns before it.

    name:       the same in every run on these data
    turn:       as it is stored
    codes:      int64 [K, T] of the turn
    context:    the turns before it, without the oldest `dropped` ones, for which there is no room
    max_frames: bound of its audio
    recording:  file, which may have been moved since; None if it is not known
    """

    name: str
    turn: Turn
    codes: torch.Tensor
    context: list[Segment]
    dropped: int
    max_frames: int
    recording: Path | None


def choose_prompts(sources: Mapping[str, Source], tokenizer: TextTokenizer, config: TrainConfig) -> list[Prompt]:
    """The turns for `trainer.sample_prompts` samples, fewer if there are not so many; says what they lack.

    Of each source's conversations, the first ones are spoken; their numbers are as the sources' weights, or as the
    final ones where weights move. A source without a split "val" is not spoken.
    """
    chosen: list[Prompt] = []
    weights = {name: source.final_weight or source.weight for name, source in sources.items()}
    waiting = {name: _prompts(name, source, len(sources) > 1, tokenizer, config) for name, source in sources.items()}
    taken = dict.fromkeys(sources, 0)
    while waiting and len(chosen) < config.trainer.sample_prompts:
        # Webster's method: of every leading part of the list, each source has its share, rounded. The first of equals.
        name = min(waiting, key=lambda source: (taken[source] + 0.5) / weights[source])
        prompt = next(waiting[name], None)
        if prompt is None:
            del waiting[name]
        else:
            chosen.append(prompt)
            taken[name] += 1
    _tell(chosen, config)
    return chosen


def _prompts(
    source: str, options: Source, mixed: bool, tokenizer: TextTokenizer, config: TrainConfig
) -> Iterator[Prompt]:
    """A prompt for each conversation of split "val" with a turn that training would learn; mixed: there are others."""
    dataset, limit = options.dataset, config.model.max_seq_len
    predicted = predicted_speaker(config.data.loss_turns)
    for number in dataset.select("val"):
        sample = dataset.read(int(number))
        if not any(turn.loss and predicted in (None, turn.speaker) for turn in sample.turns):
            continue  # nothing is tokenized for it
        turns = learned_turns(sample, tokenizer, config.data)
        learned = [place for place, turn in enumerate(turns) if turn.loss]
        if not learned:
            continue
        last = learned[-1]
        segments = [
            Segment(turn.speaker, turn.text, codes=torch.from_numpy(sample.turn_codes(turn)))
            for turn in sample.turns[: last + 1]
        ]
        codes = segments[-1].codes
        assert codes is not None
        # The engine keeps a position free. In training, text, frames and an end-of-speech frame fit into a row.
        room = limit - 1 - len(turns[last].text)
        max_frames = min(_wanted(codes), room)
        context = newest_turns(turns[:last], room - max_frames)
        dropped = last - len(context)
        name = f"{source}-{sample.key}-{last}" if mixed else f"{sample.key}-{last}"
        recording = dataset.audio_path(sample)
        yield Prompt(name, sample.turns[last], codes, segments[dropped:last], dropped, max_frames, recording)


def _wanted(codes: torch.Tensor) -> int:
    """Frames of room for a slow reading of codes [K, T], not for a runaway."""
    return 2 * codes.shape[1] + 25


@rank_zero_only
def _tell(prompts: list[Prompt], config: TrainConfig) -> None:
    """Logs what the samples lack, once for the whole run of the program."""
    limit = config.model.max_seq_len
    if not prompts:
        log.warning("no audio samples: data.loss_turns=%s trains on no turn of split 'val'", config.data.loss_turns)
    if dropped := [prompt.dropped for prompt in prompts if prompt.dropped]:
        log.warning(
            "%d of %d audio samples are spoken without the oldest turns of their context, %d turns in all: context, "
            "text and twice the recording's length exceed the model's %d positions",
            *(len(dropped), len(prompts), sum(dropped), limit),
        )
    if capped := sum(prompt.max_frames < _wanted(prompt.codes) for prompt in prompts):
        log.warning(
            "%d of %d audio samples are ended before twice the recording's length: the model has %d positions",
            *(capped, len(prompts), limit),
        )
