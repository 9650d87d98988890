"""Opened checkpoints: one class for each layout, all offering the same weights, codec and tokenizer.

    NativeCheckpoint      what `csm export` and the end of a training write      csm/formats/native.py
    QuantizedCheckpoint   what `csm quantize` writes                             csm/formats/quantized.py
    SesameCheckpoint      sesame/csm-1b, Sesame's ckpt.pt                        csm/formats/sesame.py
    HFCheckpoint          transformers' CsmForConditionalGeneration              csm/formats/hf.py
    TrainingCheckpoint    a .ckpt of train.py: a file, or a folder of shards     csm/checkpoint/contents.py

Opening reads configurations and tensor names only; values are read when they are asked for.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from csm.checkpoint.contents import EXTRAS, config_of, model_weights, stored_files
from csm.codec import Codec, CodecInfo, check_same_codec, load_codec, mimi_codec
from csm.config import CodecConfig, CodecKind, CodeLayout, CSMConfig, LoraConfig
from csm.formats import hf, native, registry, sesame, weight_names
from csm.formats.hf_processor import read_tokenizer
from csm.formats.mimi import hf_to_moshi
from csm.formats.tensors import Weights, cast, check_tensors, unite_matrices
from csm.model.csm import CSM
from csm.model.single_stack import build_model
from csm.model.speech_lm import SpeechLM
from csm.text import (
    BYTES_FILE,
    PROMPT_KEY,
    TOKENIZER_FILE,
    HFTokenizer,
    TextTokenizer,
    load_saved_tokenizer,
    saved_properties,
)

log = logging.getLogger(__name__)
HF_CODEC_PREFIX = "codec_model."


@dataclass(frozen=True, kw_only=True)
class Checkpoint(ABC):
    """An opened checkpoint.

    path:       the file or folder, for messages
    config:     shape of the model
    weights:    under our names (csm/model/csm.py)
    codec:      the codec to load; its `path` is None where the checkpoint carries the codec or the hub has it
    codec_info: the codec that the model was trained with; None where the layout does not record it
    training:   known facts about the training run, as plain values
    """

    layout: ClassVar[str]

    path: Path
    config: CSMConfig
    weights: Weights
    codec: CodecConfig
    codec_info: CodecInfo | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        """Paths of the datasets that the model was trained on; empty if not recorded."""
        data = self.training.get("data") or []
        if isinstance(data, str):  # earlier exports joined the paths of a mixture
            return [data] if Path(data).is_dir() else data.split(", ")
        return list(data)

    def load_model(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> CSM:
        """The model on `device`, to speak from. One tensor at a time is converted and moved.

        dtype: of all weights. None keeps the stored one; where matrices are stored in several, they all take the widest
        of them, since no product of two dtypes can be computed. Raises ValueError for a layout that cannot speak.
        """
        self.check_depth("speech")
        model = self.load_to_score(device, dtype)
        assert isinstance(model, CSM)  # `check_depth`
        return model

    def load_to_score(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SpeechLM:
        """As `load_model`, whatever the model's layout."""
        with torch.device("meta"):
            model = build_model(self.config)
        weights = unite_matrices(self.weights) if dtype is None else cast(self.weights, dtype)
        model.load_state_dict({name: tensor.read().to(device) for name, tensor in weights.items()}, assign=True)
        return model

    def check_depth(self, what: str) -> None:
        """Raises ValueError, naming `what` needs CSM's own layout, if the model has another."""
        layout = self.config.layout
        if layout is not CodeLayout.depth:
            raise ValueError(
                f"{self.path} has model.layout={layout.value}, a baseline that can only be trained and scored "
                f"(python -m experiments.arms); {what} needs a model of model.layout=depth"
            )

    def original_weights(self) -> Weights:
        """The weights, to convert them or to train from. Raises ValueError if they are quantized."""
        return self.weights

    def read_codec(self, device: str = "cpu") -> Codec:
        """The model's codec. Raises FileNotFoundError if it cannot be found, ValueError if it is another one."""
        return self._load_codec(self.codec, device)

    def read_tokenizer(self) -> TextTokenizer:
        """The model's tokenizer. Raises FileNotFoundError, or ValueError if it has more ids than the model."""
        tokenizer = self._load_tokenizer()
        if tokenizer.vocab_size > self.config.text_vocab_size:
            raise ValueError(
                f"{self.path}: its tokenizer has {tokenizer.vocab_size} ids, more than the model's text vocabulary of "
                f"{self.config.text_vocab_size}; {self._tokenizer_advice}"
            )
        return tokenizer

    def read_properties(self) -> dict[str, str]:
        """How the model's turns are written, see `saved_properties`. Raises what `read_tokenizer` raises."""
        return saved_properties(self._load_tokenizer())

    _tokenizer_advice: ClassVar[str] = "put the tokenizer there that the model was trained with"

    @abstractmethod
    def _load_tokenizer(self) -> TextTokenizer: ...

    def _load_codec(self, config: CodecConfig, device: str) -> Codec:
        codec = load_codec(replace(config, device=device))
        if self.codec_info is not None:
            check_same_codec(self.codec_info, codec.info, f"model {self.path} and codec {config.path or config.repo}")
        return codec


@dataclass(frozen=True, kw_only=True)
class NativeCheckpoint(Checkpoint):
    """A native model directory."""

    layout: ClassVar[str] = "native"

    @classmethod
    def open(cls, folder: Path, weights: Weights, file: Path) -> NativeCheckpoint:
        """weights: the contents of `file`."""
        config, entry = native.read_model_config(folder), native.read_config(folder)
        info = CodecInfo.from_dict(entry["codec"]["info"])
        check_tensors(weights, weight_names.shapes(config), str(file))
        return cls(
            path=folder,
            config=config,
            weights=weights,
            codec=native_codec(folder, entry, info),
            codec_info=info,
            training=entry.get("training", {}),
        )

    def _load_tokenizer(self) -> TextTokenizer:
        return load_saved_tokenizer(self.path / native.TOKENIZER_FOLDER)


def native_codec(folder: Path, entry: dict[str, Any], info: CodecInfo) -> CodecConfig:
    """The codec of a native directory. entry: its config.json; info: the codec in it"""
    fitted = folder / native.CODEC_FILE
    return CodecConfig(
        kind=CodecKind[entry["codec"]["kind"]],
        path=str(fitted) if fitted.is_file() else None,
        repo=entry["codec"]["repo"],
        num_codebooks=info.num_codebooks,
        codebook_size=info.codebook_size,
    )


@dataclass(frozen=True, kw_only=True)
class SesameCheckpoint(Checkpoint):
    """Sesame's layout. It names no codec but implies Mimi, and may come without a tokenizer.

    tokenizer: a directory, a tokenizer.json or a hub id
    prompt:    of the turns, where the tokenizer's files name none
    """

    layout: ClassVar[str] = "sesame"
    tokenizer: str
    prompt: str

    @classmethod
    def open(
        cls, weights: Weights, file: Path, content: dict[str, Any], tokenizer_path: str | None
    ) -> SesameCheckpoint:
        """weights: the contents of `file`; content: of the config.json next to it, empty if there is none."""
        folder = file.parent
        if "depth_decoder_config" in content and "csm" not in content:  # states the shape that flavors name
            config = hf.read_config(content, str(folder / "config.json"))
        elif "backbone_flavor" in content:
            config = sesame.read_config(content, str(folder / "config.json"))
        else:
            config = sesame.config_from_weights(weights, str(file))
        carried = _has_tokenizer(folder)
        known = registry.of_shape(config)  # a published file without a tokenizer has that of its code
        return cls(
            path=folder,
            config=config,
            weights=weight_names.from_sesame(weights, config, str(file)),
            codec=_mimi(config),
            training=content.get("training", {}),
            tokenizer=tokenizer_path or (str(folder) if carried else known.tokenizer),
            prompt=known.prompt,
        )

    def read_properties(self) -> dict[str, str]:
        # a published file does not need the hub for that
        return super().read_properties() if _has_tokenizer(self.path) else {PROMPT_KEY: self.prompt}

    _tokenizer_advice: ClassVar[str] = (
        "give the tokenizer the model was trained with (tokenizer_path or --tokenizer; for csm extend-vocabulary, "
        "--own-tokenizer)"
    )

    def _load_tokenizer(self) -> TextTokenizer:
        if (Path(self.tokenizer) / BYTES_FILE).is_file():
            return load_saved_tokenizer(self.tokenizer)
        try:
            return HFTokenizer.load(self.tokenizer, default_prompt=self.prompt)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path}: its tokenizer {self.tokenizer} is neither a path nor to be had from the hub; "
                f"{self._tokenizer_advice}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class HFCheckpoint(Checkpoint):
    """Hugging Face's layout.

    codec_weights:   Mimi's, under transformers' names; empty if the file has none
    codec_codebooks: that these have; not fewer than the model reads
    """

    layout: ClassVar[str] = "hf"
    codec_weights: Weights
    codec_codebooks: int

    @classmethod
    def open(cls, stored: Weights, file: Path, content: dict[str, Any]) -> HFCheckpoint:
        """stored: the contents of `file`; content: of the config.json next to it."""
        folder = file.parent
        if not content:
            raise FileNotFoundError(f"{file} has no config.json next to it, which its layout (transformers') needs")
        config = hf.read_config(content, str(folder / "config.json"))
        codec_weights = {
            name.removeprefix(HF_CODEC_PREFIX): tensor
            for name, tensor in stored.items()
            if name.startswith(HF_CODEC_PREFIX)
        }
        weights = {name: tensor for name, tensor in stored.items() if not name.startswith(HF_CODEC_PREFIX)}
        return cls(
            path=folder,
            config=config,
            weights=weight_names.from_hf(weights, config, str(file)),
            codec=_mimi(config),
            training=content.get("training", {}),
            codec_weights=codec_weights,
            codec_codebooks=hf.codec_codebooks(content),
        )

    def read_codec(self, device: str = "cpu") -> Codec:
        if self.codec.path is not None or not self.codec_weights:
            return super().read_codec(device)
        stored = {tensor.dtype for tensor in self.codec_weights.values() if tensor.dtype.is_floating_point}
        if stored != {torch.float32}:
            log.warning(
                "%s: its Mimi was rounded to %s when it was saved, and encodes context a little otherwise; give the "
                "original with --codec FILE (codec_path)",
                self.path,
                ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored)),
            )
        tensors = {name: tensor.read().float() for name, tensor in self.codec_weights.items()}
        return mimi_codec().from_state_dict(
            hf_to_moshi(tensors, self.codec_codebooks), self.config.num_codebooks, device
        )

    def _load_tokenizer(self) -> TextTokenizer:
        return read_tokenizer(self.path)


@dataclass(frozen=True, kw_only=True)
class TrainingCheckpoint(Checkpoint):
    """A training checkpoint, which carries tokenizer and fitted codec as bytes.

    content:    the checkpoint without its tensors
    adapters:   of a run with LoRA; `weights` have them merged in
    base_model: path or hub id of what was adapted
    """

    layout: ClassVar[str] = "training"
    content: dict[str, Any] = field(repr=False)
    adapters: Weights
    lora: LoraConfig
    base_model: str

    @classmethod
    def open(cls, path: Path, content: dict[str, Any], tensors: Weights, averaged: bool) -> TrainingCheckpoint:
        """content, tensors: as `csm.checkpoint.contents.read_parts` returns them; averaged: take the averages."""
        config = config_of(content)
        if averaged and not config.trainer.ema_decay:
            raise ValueError(f"{path} has no averaged weights: it was trained with trainer.ema_decay=0; omit --ema")
        weights, adapters = model_weights(content, tensors, averaged)
        check_tensors(weights, weight_names.shapes(config.model), str(path))
        data = config.data
        return cls(
            path=path,
            config=config.model,
            weights=weights,
            codec=config.codec,
            codec_info=CodecInfo.from_dict(content[EXTRAS]["codec"]),
            training={
                "step": content["global_step"],
                "name": config.name,
                "seed": config.seed,
                "data": [data.path] if data.path else [source.path for source in data.sources.values()],
                "max_seq_len": data.max_seq_len,
                "ema_decay": config.trainer.ema_decay if averaged else 0.0,
            },
            content=content,
            adapters=adapters,
            lora=config.lora,
            base_model=config.init_from or "",
        )

    def read_codec(self, device: str = "cpu") -> Codec:
        with stored_files(self.content) as folder:
            fitted = folder / native.CODEC_FILE
            return self._load_codec(replace(self.codec, path=str(fitted)) if fitted.is_file() else self.codec, device)

    def _load_tokenizer(self) -> TextTokenizer:
        with stored_files(self.content) as folder:
            return load_saved_tokenizer(folder / native.TOKENIZER_FOLDER)


def _mimi(config: CSMConfig) -> CodecConfig:
    return CodecConfig(kind=CodecKind.mimi, num_codebooks=config.num_codebooks, codebook_size=config.codebook_size)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (TOKENIZER_FILE, BYTES_FILE))
