"""Scripts of several turns spoken in given voices: tts_longeval's dialogues and monologues, CoVoMix2's dialogues.

Each turn is spoken after the recorded prompts alone, the speaker's own first: of the ways in which the authors of
tts_longeval ran CSM-1B, this one gave the best word error rate. So turns do not depend on each other, errors do not
build up, and items can be shared among processes; the `context` suite is about context.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.evaluation.prompts import AudioSpan, EvalPrompt, PromptSet
from csm.evaluation.suites.suite import Published, Suite, data_file, prompt_set, voice
from csm.files import read_json_lines
from csm.formats.layouts import Checkpoint
from csm.inference.segments import Segment

LONGEVAL = (
    "the checkout of kyutai-labs/tts_longeval, with the data set kyutai/voices_tts_longeval as its folder voices/"
)
COVOMIX = (
    "the checkout of vivian556123/covomix2-dialogue-testset, with LibriSpeech's test-clean/ in its folder LibriSpeech/"
)


def load_longeval_dialogs(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    return _longeval(settings, codec, "datasets/synth_dialogs_en.jsonl", 104)


def load_longeval_monologs(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    return _longeval(settings, codec, "datasets/ntrex_eng.jsonl", 123)


def _longeval(settings: EvalConfig, codec: Codec, name: str, documents: int) -> PromptSet:
    """A line is `{"id", "turns": [text ...], "speaker_audios": [file ...]}`; the text of voice.wav is voice.txt.

    Raises ValueError, with its number, for a line that is not so, or names missing voices.
    """
    listed = data_file(settings, LONGEVAL, name)
    prompts = []
    count = 0
    for number, record in read_json_lines(listed):
        where, count = f"{listed}:{number}", count + 1
        if not {"id", "turns", "speaker_audios"} <= record.keys() or len(record["speaker_audios"]) not in (1, 2):
            raise ValueError(f"{where}: expected id, turns and one or two speaker_audios")
        voices = []
        for place, file in enumerate(record["speaker_audios"]):
            path = listed.parents[1] / "voices" / file
            if not path.with_suffix(".txt").is_file():
                raise ValueError(f"{where}: {path.with_suffix('.txt')}, the text of the voice, does not exist")
            text = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            voices.append((*voice(path, text, place, codec, where), file))
        prompts += _turns(record["id"], [_clean(turn) for turn in record["turns"]], voices)
    return _documents(prompts, settings, listed, count, documents)


def _clean(text: str) -> str:
    """The replacements that tts_longeval makes in its scripts: colons, parentheses, soft hyphens, one apostrophe."""
    text = text.replace("\u2019", "'").replace("\xad", "")
    return " ".join(re.sub(r"[:()]", " ", text).split())


def load_covomix2(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    """The index names, for each dialogue, a file of lines spoken in turn and two prompts with their texts.

    Raises ValueError for an entry that lacks one of them, or names missing files.
    """
    listed = data_file(settings, COVOMIX, "dailydialog-dialogue.json")
    entries = json.loads(listed.read_text(encoding="utf-8"))
    prompts = []
    for entry in entries:
        where = f"{listed}, dialogue {entry.get('key')}"
        fields = [f"audio_prompt_spk{n}{part}" for n in (1, 2) for part in ("", "_transcription")]
        if missing := [field for field in ("key", "text", *fields) if field not in entry]:
            raise ValueError(f"{where}: lacks {', '.join(missing)}")
        script = listed.parent / entry["text"]
        if not script.is_file():
            raise ValueError(f"{where}: {script} does not exist")
        lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
        voices = []
        for place, file in enumerate((entry["audio_prompt_spk1"], entry["audio_prompt_spk2"])):
            text = entry[f"audio_prompt_spk{place + 1}_transcription"]
            voices.append((*voice(listed.parent / "LibriSpeech" / file, text, place, codec, where), file))
        prompts += _turns(str(entry["key"]), [line for line in lines if line], voices)
    return _documents(prompts, settings, listed, len(entries), 1000)


def _turns(document: str, turns: Sequence[str], voices: Sequence[tuple[Segment, AudioSpan, str]]) -> list[EvalPrompt]:
    """Turns of alternating speakers, the first voice's first. Whoever speaks is speaker 0 of the prompt."""
    prompts = []
    for number, text in enumerate(turns):
        own = number % len(voices)
        order = [voices[own], *voices[:own], *voices[own + 1 :]]
        context = [Segment(place, v.text, audio=v.audio) for place, (v, _, _) in enumerate(order)]
        prompts.append(
            EvalPrompt(
                id=f"{document}/{number}",
                text=text,
                speaker=0,
                cluster=document,
                context=context,
                own_context=[order[0][1]],
                other_context=[span for _, span, _ in order[1:]],
                missing_reference="scripts have no recording",
                turn=number,
                voice=order[0][2],
            )
        )
    return prompts


def _documents(prompts: list[EvalPrompt], settings: EvalConfig, listed: Path, count: int, published: int) -> PromptSet:
    found = prompt_set(prompts, settings, listed, len(prompts))
    if count != published:
        found.notes.append(f"{count} documents, the published set has {published}.")
    return found


_METRICS = ("wer_document", "wer_corpus", "cosine_earlier", "nearest", "failed", "wer_sound")
_SCORING = (
    "wer_document: errors of all turns of a document over its words, mean over documents, Whisper's normalizer, each "
    "turn transcribed by itself; cosine_earlier: cosine with the speaker's prompt, mean; nearest: turns that "
    "resemble their own prompt more than the other speaker's"
)
_WHOLE = "published WER transcribes whole documents, this one turns"
_REQUIRES = (("large-v3", "Whisper large-v3 (eval.asr=whisper_hf)"), ("wavlm", "a WavLM speaker encoder"))


def _longeval_rows(rows: Sequence[tuple[str, str, str]]) -> tuple[Published, ...]:
    source = "DSM-TTS paper, arXiv 2509.08753"
    return tuple(Published(s, {"wer_document": w, "cosine_earlier": c}, source, _WHOLE) for s, w, c in rows)


SUITE_DIALOGS = Suite(
    name="longeval_dialogs",
    version=1,
    scoring=_SCORING,
    metrics=_METRICS,
    load=load_longeval_dialogs,
    source=LONGEVAL,
    licence="scripts CC BY 4.0, voices of VCTK CC BY 4.0",
    checksum="none is published; the report has the sha256 of the script and counts its documents (104)",
    requires=_REQUIRES,
    published=_longeval_rows((("CSM-1B, up to 5 retries", "2.95", "0.658"),)),
)
SUITE_MONOLOGS = Suite(
    name="longeval_monologs",
    version=1,
    scoring=_SCORING,
    metrics=tuple(name for name in _METRICS if name != "nearest"),
    load=load_longeval_monologs,
    source=LONGEVAL,
    licence="scripts CC BY-SA 4.0 (NTREX), voices of VCTK CC BY 4.0",
    checksum="none is published; the report has the sha256 of the script and counts its documents (123)",
    requires=_REQUIRES,
    published=_longeval_rows((("CSM-1B, up to 5 retries", "4.68", "0.831"),)),
)
SUITE_COVOMIX = Suite(
    name="covomix2_dialogue",
    version=1,
    scoring=_SCORING,
    metrics=_METRICS,
    load=load_covomix2,
    source=COVOMIX,
    licence="DailyDialog CC BY-NC-SA 4.0, LibriSpeech CC BY 4.0",
    checksum="none is published; the report has the sha256 of the index and counts its dialogues (1,000)",
    requires=_REQUIRES,
    published=(
        Published(
            "ZipVoice-Dialog",
            {"wer_corpus": "4.23"},
            "ZipL-Dialog's table",
            "another recognizer, whole dialogues mixed",
        ),
    ),
)
