"""What happens around training: the progress bar, and audio samples during validation."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger

from csm.audio import save_wav
from csm.codec import Codec
from csm.data.dataset import ShardedDataset
from csm.inference.generator import GeneratedSegment, Generator, Segment
from csm.text import TextTokenizer
from csm.training.module import CSMTrainingModule


class StepProgressBar(RichProgressBar):
    """Lightning's bar over all optimizer steps; there are no epochs in its sense."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"


class AudioSamples(L.Callback):
    """Speaks fixed turns of the dataset every `every_steps` optimizer steps, at the validation that follows.

    Writes `<folder>/<sample key>-<turn>/{codec,step-0001000}.wav` and `text.json`, and logs to W&B where that is in
    use. The turns are the last ones of the first `prompts` conversations of split "val" ("train" if that is empty),
    each with its true context; generation is greedy, so that samples of two steps can be compared. Rank 0
    speaks, with a whole copy of a sharded model.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        codec: Codec,
        tokenizer: TextTokenizer,
        folder: Path,
        every_steps: int,
        prompts: int,
    ) -> None:
        self.dataset, self.codec, self.tokenizer = dataset, codec, tokenizer
        self.folder, self.every_steps = folder, every_steps
        numbers = dataset.select("val")
        self.numbers = (numbers if len(numbers) else dataset.select("train"))[:prompts]
        self._last_step = 0

    def on_validation_end(self, trainer: L.Trainer, module: CSMTrainingModule) -> None:
        if trainer.sanity_checking or trainer.global_step - self._last_step < self.every_steps:
            return
        self._last_step = trainer.global_step
        model = module.whole_model()  # all ranks take part
        if not trainer.is_global_zero:
            return
        training = module.model.training
        generator = Generator(model, self.codec, self.tokenizer)
        for number in self.numbers:
            name, target, result = self._speak(generator, int(number))
            self._write(trainer, name, target, result)
        module.model.train(training)

    def _speak(self, generator: Generator, number: int) -> tuple[str, Segment, GeneratedSegment]:
        sample = self.dataset.read(number)
        segments = [
            Segment(
                turn.spk,
                turn.text,
                codes=torch.from_numpy(sample.codes[:, turn.f0 : turn.f0 + turn.nf].astype(np.int64)),
            )
            for turn in sample.turns
        ]
        target = segments[-1]
        limit = 2 * target.codes.shape[1] + 25  # frames: room for a slow reading, not for a runaway
        milliseconds = 1000 * limit / generator.codec.frame_rate
        result = generator.generate_segment(
            target.text, target.speaker, segments[:-1], max_audio_length_ms=milliseconds, temperature=0
        )
        return f"{sample.key}-{len(segments) - 1}", target, result

    def _write(self, trainer: L.Trainer, name: str, target: Segment, result: GeneratedSegment) -> None:
        folder = self.folder / name
        rate = self.codec.sample_rate
        if not (folder / "codec.wav").exists():
            folder.mkdir(parents=True, exist_ok=True)
            save_wav(folder / "codec.wav", self.codec.decode(target.codes[None])[0, 0], rate)
            (folder / "text.json").write_text(json.dumps({"speaker": target.speaker, "text": target.text}) + "\n")
        if not result.frames:
            return  # the model ended the turn at once: early in training, and nothing to hear
        file = folder / f"step-{trainer.global_step:07d}.wav"
        save_wav(file, result.segment.audio, rate)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_audio(f"samples/{name}", [str(file)], step=trainer.global_step, caption=[target.text])
