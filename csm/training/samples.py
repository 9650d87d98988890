"""Audio samples during training: fixed turns of the dataset, spoken again and again as the model learns."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import Logger
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng

from csm.audio import load_audio, save_wav
from csm.codec import Codec
from csm.config import LoraConfig, TrainerConfig
from csm.inference.generator import GeneratedSegment, Generator
from csm.model.csm import CSM
from csm.parallel.plan import precision, whole_model
from csm.stability.sample_metrics import SampleJudge, drift, sample_metrics
from csm.text import TextTokenizer
from csm.training.loggers import JsonLines, read_lines
from csm.training.sample_prompts import Prompt

log = logging.getLogger(__name__)


class AudioSamples:
    """Speaks fixed turns of the dataset at the first validation at or after every `sample_every_steps` steps.

        <folder>/<name of the prompt>/reference.wav      the recording, where it can still be found
                                     codec.wav           the same through the codec: the best a model can do
                                     step-0001000.wav    generated
        <folder>/samples.jsonl                           what was spoken at which step, how it ended, and scores

    and in W&B where that is in use. Generation is greedy, so that samples of two steps can be compared, and changes
    neither weights nor random numbers.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        codec: Codec,
        tokenizer: TextTokenizer,
        folder: Path,
        options: TrainerConfig,
        judges: Sequence[SampleJudge] = (),
    ) -> None:
        self.prompts, self.codec, self.tokenizer = prompts, codec, tokenizer
        self.folder, self.options, self.judges = folder, options, judges
        self._index = JsonLines(folder / "samples.jsonl")

    def due(self, step: int) -> bool:
        every = self.options.sample_every_steps
        return step // every > (step - self.options.val_every_steps) // every

    def speak(self, model: CSM, lora: LoraConfig, step: int, fabric: Fabric) -> dict[str, float]:
        """Speaks every prompt on rank 0 and writes the files. Returns their metrics, logged, and warns if they have got
        worse; on other ranks there are none. All ranks take part, since the model may be sharded."""
        dtype = torch.bfloat16 if precision(self.options) == "bf16-mixed" else torch.float32
        whole = whole_model(model, lora, fabric.device, dtype)
        if not fabric.is_global_zero:
            return {}
        metrics = self._speak(whole, step, fabric.loggers)
        for logger in fabric.loggers:
            logger.log_metrics(metrics, step)
            logger.save()
        return metrics

    def _speak(self, model: CSM, step: int, loggers: list[Logger]) -> dict[str, float]:
        # Compiled blocks run uncompiled: generation has other shapes in every step.
        with isolate_rng(), torch.compiler.set_stance("force_eager"):
            generator = Generator(model, self.codec, self.tokenizer)
            records = [self._write(prompt, self._generate(generator, prompt), step, loggers) for prompt in self.prompts]
        metrics = sample_metrics(records, self.codec.frame_rate)
        for sentence in drift(self._history(step), metrics):
            log.warning("samples of step %d: %s", step, sentence)
        return metrics

    def _history(self, before: int) -> list[tuple[int, dict[str, float]]]:
        """Metrics of the earlier steps of this run, of this process or not."""
        by_step: dict[int, list[dict[str, Any]]] = {}
        for record in read_lines(self._index.path):
            if record["step"] < before and "reference_frames" in record:  # records of earlier versions have none
                by_step.setdefault(record["step"], []).append(record)
        return [(step, sample_metrics(records, self.codec.frame_rate)) for step, records in sorted(by_step.items())]

    def _generate(self, generator: Generator, prompt: Prompt) -> GeneratedSegment:
        return generator.generate_segment(
            prompt.turn.text,
            prompt.turn.speaker,
            prompt.context,
            max_audio_length_ms=1000 * prompt.max_frames / generator.codec.frame_rate,
            temperature=0,
        )

    def _write(self, prompt: Prompt, result: GeneratedSegment, step: int, loggers: list[Logger]) -> dict[str, Any]:
        """Writes the files of one sample; returns its record."""
        folder, turn = self.folder / prompt.name, prompt.turn
        if not (folder / "text.json").exists():
            self._write_references(folder, prompt)
        files = {name: folder / f"{name}.wav" for name in ("reference", "codec")}
        if result.frames:  # otherwise it ended the turn at once: early in training, and nothing to hear
            files["generated"] = folder / f"step-{step:07d}.wav"
            save_wav(files["generated"], result.audio, self.codec.sample_rate)
        files = {name: file for name, file in files.items() if file.exists()}
        record = {
            "step": step,
            "id": prompt.name,
            "speaker": turn.speaker,
            "text": turn.text,
            "context_turns": len(prompt.context),
            "frames": result.frames,
            "reference_frames": prompt.codes.shape[1],
            "finish_reason": result.finish_reason,
            "files": {name: file.relative_to(self.folder).as_posix() for name, file in files.items()},
        }
        if self.judges:
            reference = self.codec.decode(prompt.codes[None].to(self.codec.device))[0, 0].float().cpu()
            for judge in self.judges:
                record |= judge.scores(result.audio, self.codec.sample_rate, turn.text, reference)
        self._index.append(record)
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                captions = [f"{name}: {turn.text}" for name in files]
                audios = [str(file) for file in files.values()]
                logger.log_audio(f"samples/{prompt.name}", audios, step=step, caption=captions)
        return record

    def _write_references(self, folder: Path, prompt: Prompt) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rate, turn, recording = self.codec.sample_rate, prompt.turn, prompt.recording
        save_wav(folder / "codec.wav", self.codec.decode(prompt.codes[None])[0, 0], rate)
        if recording is not None and recording.is_file():
            try:
                audio = load_audio(recording, rate, turn.channel)
                save_wav(folder / "reference.wav", audio[int(turn.start * rate) : int(turn.end * rate)], rate)
            except ValueError as error:  # it was readable when the dataset was prepared
                log.warning("sample %s has no reference: %s", prompt.name, error)
        else:
            log.info("sample %s has no reference: the recording %s is not here", prompt.name, recording)
        (folder / "text.json").write_text(json.dumps({"speaker": turn.speaker, "text": turn.text}) + "\n")
