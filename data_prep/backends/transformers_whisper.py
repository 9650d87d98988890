"""Whisper through transformers: greedy, in batches of clips, words timed by the model's cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.evaluation.hub import EvaluatorUnavailable, fetch_model
from data_prep.backends.whisper import BUNDLED, UNSPACED, Recognized, in_batches
from data_prep.config import TranscribeConfig
from data_prep.records import MODEL_RATE, Word
from data_prep.stages.base import ModelUnavailable


class TransformersWhisper:
    """A loaded model; `transcribe.model` is a folder or a hub repository. float16 on CUDA, float32 on CPUs.

    Raises:
        FileNotFoundError: the weights are neither here nor can they be fetched.
        ModelUnavailable: the weights do not load, or the model cannot time words.
    """

    def __init__(self, cfg: TranscribeConfig) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        if cfg.model == BUNDLED:
            raise ModelUnavailable("transcribe.model=bundled is for transcribe.backend=faster_whisper")
        try:
            folder = fetch_model(cfg.model)
        except EvaluatorUnavailable as error:
            raise FileNotFoundError(
                f"{error}: download it and set transcribe.model to the folder, or take transcribe=bundled"
            ) from error
        dtype = torch.float16 if cfg.device.startswith("cuda") else torch.float32
        try:
            self._processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
            self._model: Any = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelUnavailable(
                f"transcribe.model={cfg.model} does not load as a Whisper model: {reason}"
            ) from error
        self._options = self._model.generation_config
        if getattr(self._options, "alignment_heads", None) is None:
            raise ModelUnavailable(
                f"transcribe.model={cfg.model} cannot time words: its generation_config.json has no alignment_heads"
            )
        self._model.to(cfg.device).eval()
        self._end = self._model.config.eos_token_id  # all tokens of text have lower numbers
        self._multilingual = getattr(self._options, "is_multilingual", True)
        self._cfg, self._dtype = cfg, dtype

    @torch.inference_mode()
    def languages(self, clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        if not self._multilingual:
            return [{"en": 1.0} for _ in clips]
        codes = {token.strip("<|>"): number for token, number in self._options.lang_to_id.items()}
        found: list[dict[str, float]] = []
        for clip in clips:
            start = torch.full((1, 1), self._options.decoder_start_token_id, device=self._model.device)
            logits = self._model(**self._features([clip]), decoder_input_ids=start).logits[0, -1].float()
            shares = logits[list(codes.values())].softmax(dim=0)
            found.append(dict(zip(codes, shares.tolist(), strict=True)))
        return found

    @torch.inference_mode()
    def transcribe(self, clips: Sequence[np.ndarray], lang: str) -> list[Recognized]:
        return in_batches(self._batch, clips, lang, self._cfg, self._multilingual)

    def _features(self, clips: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The mask tells where a clip ends: words are timed inside it, not in the silence that fills it up to 30 s."""
        features = self._processor.feature_extractor(
            list(clips), sampling_rate=MODEL_RATE, return_tensors="pt", return_attention_mask=True
        )
        device = self._model.device
        return {
            "input_features": features.input_features.to(device, self._dtype),
            "attention_mask": features.attention_mask.to(device),
        }

    def _batch(self, clips: Sequence[np.ndarray], lang: str) -> list[Recognized]:
        features = self._features(clips)
        prompt = {"language": lang, "task": "transcribe"} if self._multilingual else {}
        made = self._model.generate(
            **features,
            **prompt,
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
            found.append(Recognized(text, self._words(spoken, lang), score, silence))
        return found

    def _confidence(self, features: dict[str, Tensor], sequences: Tensor) -> tuple[list[float], list[float]]:
        """Mean log-probability of each text (its end included), and the probability that there is none.

        By a pass of its own over the finished text: what `generate` keeps for each step is after suppression.
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

    def _words(self, spoken: Sequence[tuple[int, float, float]], lang: str) -> list[Word]:
        """Tokens (number, start, end) as words: a new one begins with a space, or, where a language has none, with
        every character that is no punctuation."""
        words: list[Word] = []
        pending: list[tuple[int, float, float]] = []
        for token in spoken:
            pending.append(token)
            piece = self._processor.tokenizer.decode([number for number, _, _ in pending])
            if piece.endswith("\ufffd"):
                continue  # in the middle of a character
            start, end = pending[0][1], pending[-1][2]
            pending = []
            begins = any(map(str.isalnum, piece)) if lang in UNSPACED else piece.startswith(" ")
            if words and not begins:
                words[-1] = Word(words[-1].text + piece, words[-1].start, end)
            else:
                words.append(Word(piece.strip(), start, end))
        return words
