"""Whisper through transformers: greedy, with words timed by the model's cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.judges.hub import ModelUnavailable, fetch_model
from csm.judges.recognition import (
    BUNDLED,
    MAX_CLIP_SECONDS,
    RATE,
    Recognized,
    Word,
    check_language,
    in_batches,
)
from csm.languages import UNSPACED
from csm.provenance import package_versions


class TransformersWhisper:
    """A loaded model; every utterance is recognized on its own.

    Args:
        model: a folder, or a hub repository.
        device: "cpu", "cuda" or "cuda:0".
        language: language of `transcribe`.
        dtype: type of weights and computation.
        batch_size: clips that `recognize` processes at once.
        option: the option that chose the model, for messages.

    Raises:
        ModelUnavailable: the weights are missing and cannot be fetched, they do not load, or the model does not know
            the language.
    """

    def __init__(
        self,
        model: str,
        device: str,
        *,
        language: str = "en",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
        option: str,
    ) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        if model == BUNDLED:
            raise ModelUnavailable(f"{option}={BUNDLED} is a CTranslate2 model: use it with faster_whisper")
        try:
            folder = fetch_model(model)
        except ModelUnavailable as error:
            raise ModelUnavailable(f"{error}: download it and set {option} to the folder") from error
        try:
            self._processor: Any = WhisperProcessor.from_pretrained(folder, local_files_only=True)
            self._model: Any = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelUnavailable(f"{model} does not load as a Whisper model: {reason}") from error
        self._options = self._model.generation_config
        self._model.to(device).eval()
        self._end = self._model.config.eos_token_id  # all tokens of text have lower numbers
        self._multilingual = getattr(self._options, "is_multilingual", True)
        self._source, self._snapshot, self._option = model, folder.name, option
        self._language, self._dtype, self._batch_size = language, dtype, batch_size
        check_language(model, self._multilingual, language, option)
        label = Path(model).name.removeprefix("whisper-")
        self.name = f"Whisper {label} (transformers, {_name_of(dtype)}, greedy)"

    @torch.inference_mode()
    def transcribe(self, audio: Tensor, sample_rate: int) -> str:
        samples = resample(audio, sample_rate, RATE)
        # The feature extractor cuts at 30 s by default. Longer audio goes through Whisper's sequential long-form
        # decoding, which needs the whole signal and timestamps.
        long = len(samples) > MAX_CLIP_SECONDS * RATE
        inputs = self._processor(
            samples.numpy(),
            sampling_rate=RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **({"truncation": False, "padding": "longest"} if long else {}),
        ).to(self._model.device, self._dtype)
        ids = self._model.generate(
            **inputs,
            **self._prompt(self._language),
            do_sample=False,
            num_beams=1,
            return_timestamps=long,
            temperature=0.0,
        )
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": self._source,
            "revision": self._snapshot,
            "compute_type": _name_of(self._dtype),
            "decoding": "greedy, temperature 0, no fallback; sequential long-form above 30 s",
            "language": self._language,
            "packages": package_versions("transformers", "torch"),
        }

    @torch.inference_mode()
    def languages(self, clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        check_language(self._source, self._multilingual, None, self._option)
        codes = {token.strip("<|>"): number for token, number in self._options.lang_to_id.items()}
        found: list[dict[str, float]] = []
        for clip in clips:
            start = torch.full((1, 1), self._options.decoder_start_token_id, device=self._model.device)
            logits = self._model(**self._features([clip]), decoder_input_ids=start).logits[0, -1].float()
            shares = logits[list(codes.values())].softmax(dim=0)
            found.append(dict(zip(codes, shares.tolist(), strict=True)))
        return found

    @torch.inference_mode()
    def recognize(self, clips: Sequence[np.ndarray], language: str) -> list[Recognized]:
        check_language(self._source, self._multilingual, language, self._option)
        if getattr(self._options, "alignment_heads", None) is None:
            raise ModelUnavailable(
                f"{self._source} cannot time words: its generation_config.json has no alignment_heads; set "
                f"{self._option} to another model"
            )
        return in_batches(partial(self._recognize_batch, language=language), clips, self._batch_size)

    def _prompt(self, language: str) -> dict[str, str]:
        """Arguments of `generate`; English-only checkpoints reject language and task."""
        return {"language": language, "task": "transcribe"} if self._multilingual else {}

    def _features(self, clips: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Model inputs. The mask ends with the clip: words are timed inside it, not in the padding up to 30 s."""
        features = self._processor.feature_extractor(
            list(clips), sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
        )
        device = self._model.device
        return {
            "input_features": features.input_features.to(device, self._dtype),
            "attention_mask": features.attention_mask.to(device),
        }

    def _recognize_batch(self, clips: Sequence[np.ndarray], language: str) -> list[Recognized]:
        features = self._features(clips)
        made = self._model.generate(
            **features,
            **self._prompt(language),
            num_beams=1,
            do_sample=False,
            temperature=0.0,
            return_timestamps=False,
            return_token_timestamps=True,
            return_dict_in_generate=True,
        )
        scores, silences = self._confidence(features, made["sequences"])
        found: list[Recognized] = []
        for tokens, times, score, silence in zip(
            made["sequences"].tolist(), made["token_timestamps"].tolist(), scores, silences, strict=True
        ):
            # a token lasts from the time of the one before it to its own
            spoken = [(token, times[i - 1], times[i]) for i, token in enumerate(tokens) if token < self._end]
            text = self._processor.tokenizer.decode([token for token, _, _ in spoken]).strip()
            found.append(Recognized(text, self._words(spoken, language), score, silence))
        return found

    def _confidence(self, features: dict[str, Tensor], sequences: Tensor) -> tuple[list[float], list[float]]:
        """Mean log-probability of each text (its end included), and the probability that there is no speech.

        Computed in another pass over the finished text, as the scores that `generate` returns are after suppression.
        """
        logits = self._model(**features, decoder_input_ids=sequences[:, :-1]).logits.float()
        said = logits.log_softmax(dim=2).gather(2, sequences[:, 1:, None]).squeeze(2)
        begin = sequences[0].tolist().index(self._options.no_timestamps_token_id)  # the prompt's last token
        index = torch.arange(said.shape[1], device=said.device)[None]
        length = (sequences[:, 1:] < self._end).sum(dim=1, keepdim=True)
        counted = (index >= begin) & (index <= begin + length)
        means = (said * counted).sum(dim=1) / counted.sum(dim=1)
        silence = logits[:, 0].softmax(dim=1)[:, self._options.no_timestamps_token_id - 1]
        return means.tolist(), silence.tolist()

    def _words(self, spoken: Sequence[tuple[int, float, float]], language: str) -> list[Word]:
        """Tokens (number, start, end) as words.

        A word begins with a space or, in a language without spaces, with every character that is not punctuation.
        """
        words: list[Word] = []
        pending: list[tuple[int, float, float]] = []
        for token in spoken:
            pending.append(token)
            piece = self._processor.tokenizer.decode([number for number, _, _ in pending])
            if piece.endswith("\ufffd"):
                continue  # in the middle of a character
            start, end = pending[0][1], pending[-1][2]
            pending = []
            begins = any(map(str.isalnum, piece)) if language in UNSPACED else piece.startswith(" ")
            if words and not begins:
                words[-1] = Word(words[-1].text + piece, words[-1].start, end)
            else:
                words.append(Word(piece.strip(), start, end))
        return words


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
