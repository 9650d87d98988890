"""What happens around training: the progress bar, and audio samples during validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng

from csm.audio import load_audio, save_wav
from csm.codec import Codec
from csm.config import TrainerConfig
from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample
from csm.inference.generator import GeneratedSegment, Generator, Segment
from csm.text import TextTokenizer
from csm.training.loggers import JsonLines
from csm.training.module import CSMTrainingModule

log = logging.getLogger(__name__)


BAR = {
    "c0": ("train/loss_c0", ".3f"),
    "decoder": ("train/loss_decoder", ".3f"),
    "positions/s": ("throughput/positions_per_second", ".0f"),
    "MFU": ("throughput/mfu", ".1%"),
    "skipped": ("train/skipped_steps", "d"),
}
"""What the progress bar shows of the last training line, and how."""


class StepProgressBar(RichProgressBar):
    """Lightning's bar over all optimizer steps, with what was logged last; there are no epochs in its sense."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: L.Trainer, module: CSMTrainingModule) -> dict[str, str]:
        shown = {}
        for name, (key, form) in BAR.items():
            if module.logged.get(key):  # skipped steps: once there are any
                shown[name] = format(module.logged[key], form)
        return shown


@dataclass
class Prompt:
    """A turn of the dataset to be spoken after the turns before it. name: the same in every run on these data."""

    name: str
    sample: Sample
    context: list[Segment]
    target: Segment


class AudioSamples(L.Callback):
    """Speaks fixed turns of the dataset at the first validation at or after every `sample_every_steps` steps.

        <folder>/<sample key>-<turn>/reference.wav       the recording, where it is still to be found
                                     codec.wav           the same through the codec: the best a model can do
                                     step-0001000.wav    generated
        <folder>/samples.jsonl                           what was spoken at which step, and how it ended

    and in W&B where that is in use. The turns are the last ones of the first `sample_prompts` conversations of split
    "val" ("train" if that is empty), each with its true context; generation is greedy, so that samples of two steps can
    be compared, and changes neither weights nor random numbers. Rank 0 speaks, with a whole copy of a sharded model.
    """

    def __init__(
        self, dataset: ShardedDataset, codec: Codec, tokenizer: TextTokenizer, folder: Path, options: TrainerConfig
    ) -> None:
        self.dataset, self.codec, self.tokenizer = dataset, codec, tokenizer
        self.folder, self.options = folder, options
        self._index = JsonLines(folder / "samples.jsonl")
        numbers = dataset.select("val")
        self.numbers = (numbers if len(numbers) else dataset.select("train"))[: options.sample_prompts]

    def on_validation_end(self, trainer: L.Trainer, module: CSMTrainingModule) -> None:
        every, step = self.options.sample_every_steps, trainer.global_step
        due = step // every > (step - self.options.val_every_steps) // every
        if not due:
            return
        with _speaking(module):
            model = module.whole_model()  # all ranks take part
            if trainer.is_global_zero:
                generator = Generator(model, self.codec, self.tokenizer)
                for number in self.numbers:
                    prompt = self._prompt(int(number))
                    self._write(trainer, prompt, self._speak(generator, prompt))

    def _prompt(self, number: int) -> Prompt:
        sample = self.dataset.read(number)
        segments = [
            Segment(
                turn.speaker,
                turn.text,
                codes=torch.from_numpy(sample.turn_codes(turn)),
            )
            for turn in sample.turns
        ]
        return Prompt(f"{sample.key}-{len(segments) - 1}", sample, segments[:-1], segments[-1])

    def _speak(self, generator: Generator, prompt: Prompt) -> GeneratedSegment:
        target = prompt.target
        limit = 2 * target.codes.shape[1] + 25  # frames: room for a slow reading, not for a runaway
        milliseconds = 1000 * limit / generator.codec.frame_rate
        return generator.generate_segment(
            target.text, target.speaker, prompt.context, max_audio_length_ms=milliseconds, temperature=0
        )

    def _write(self, trainer: L.Trainer, prompt: Prompt, result: GeneratedSegment) -> None:
        folder, target, step = self.folder / prompt.name, prompt.target, trainer.global_step
        if not (folder / "text.json").exists():
            self._write_references(folder, prompt)
        files = {name: folder / f"{name}.wav" for name in ("reference", "codec")}
        if result.frames:  # otherwise it ended the turn at once: early in training, and nothing to hear
            files["generated"] = folder / f"step-{step:07d}.wav"
            save_wav(files["generated"], result.segment.audio, self.codec.sample_rate)
        files = {name: file for name, file in files.items() if file.exists()}
        self._index.append(
            {
                "step": step,
                "id": prompt.name,
                "speaker": target.speaker,
                "text": target.text,
                "frames": result.frames,
                "finish_reason": result.finish_reason,
                "files": {name: file.relative_to(self.folder).as_posix() for name, file in files.items()},
            }
        )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                captions = [f"{name}: {target.text}" for name in files]
                audios = [str(file) for file in files.values()]
                logger.log_audio(f"samples/{prompt.name}", audios, step=step, caption=captions)

    def _write_references(self, folder: Path, prompt: Prompt) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rate, target, turn = self.codec.sample_rate, prompt.target, prompt.sample.turns[-1]
        save_wav(folder / "codec.wav", self.codec.decode(target.codes[None])[0, 0], rate)
        recording = self.dataset.audio_path(prompt.sample)
        if recording is not None and recording.is_file():
            try:
                audio = load_audio(recording, rate, turn.channel)
                save_wav(folder / "reference.wav", audio[int(turn.start * rate) : int(turn.end * rate)], rate)
            except ValueError as error:  # it was readable when the dataset was prepared
                log.warning("sample %s has no reference: %s", prompt.name, error)
        else:
            log.info("sample %s has no reference: the recording %s is not here", prompt.name, recording)
        (folder / "text.json").write_text(json.dumps({"speaker": target.speaker, "text": target.text}) + "\n")


@contextmanager
def _speaking(module: CSMTrainingModule) -> Iterator[None]:
    """Puts the module into the state that validation has, for generation, and back as it was.

    Compiled blocks run as they are written: generation has other shapes in every step.
    """
    training = module.model.training
    module.swap_weights()
    try:
        with isolate_rng(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        module.swap_weights()
        module.model.train(training)
