"""The language that the data give is the recording's, in whatever form and words; what cannot be used has a line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import Source, text, wav

from data_prep.config import DataPrepConfig, PlanConfig
from data_prep.inputs.plan import make_plan

NAMES = {
    "Italian": "it",
    "Russian": "ru",
    "portuguese": "pt",
    "Mandarin": "zh",
    "de-DE": "de",
    "pt_BR": "pt",
    "deu": "de",
    "EN": "en",
    "gsw": "gsw",
}


def manifest(folder: Path, given: object) -> None:
    recording = {"id": "a", "sources": [{"type": "file", "source": "a.wav"}], "sampling_rate": 8000}
    text(folder / "recordings.jsonl", [recording])
    row = {"id": "s", "recording_id": "a", "start": 0, "duration": 0.5, "text": "Si.", "language": given}
    text(folder / "supervisions.jsonl", [row])


FORMS = {
    "lhotse": manifest,
    "JSON": lambda folder, given: text(folder / "a.json", json.dumps({"text": "Si.", "language": given})),
    "segments": lambda folder, given: text(
        folder / "a.json", json.dumps([{"start": 0, "end": 0.5, "text": "Si.", "language": given}])
    ),
    "Deepgram": lambda folder, given: text(
        folder / "a.json",
        json.dumps(
            {
                "results": {
                    "channels": [
                        {
                            "detected_language": given,
                            "alternatives": [{"words": [{"word": "Si.", "start": 0, "end": 0.5}]}],
                        }
                    ]
                }
            }
        ),
    ),
    "NeMo": lambda folder, given: text(
        folder / "m.json", [{"audio_filepath": "a.wav", "text": "Si.", "duration": 1, "lang": given}]
    ),
    "CHAT": lambda folder, given: text(
        folder / "a.cha", f"@Begin\n@Languages:\t{given}\n@Media:\ta, audio\n*ANN:\tsi . \x15100_500\x15\n@End\n"
    ),
    "audiofolder": lambda folder, given: text(folder / "metadata.csv", f"file_name,text,language\na.wav,Si.,{given}\n"),
    "parquet": lambda folder, given: pq.write_table(
        pa.Table.from_pylist([{"audio": {"bytes": None, "path": "a.wav"}, "text": "Si.", "language": given}]),
        folder / "m.parquet",
    ),
}


def given_in(folder: Path, form: str, language: object) -> Source:
    wav(folder / "a.wav")
    FORMS[form](folder, language)
    return Source(folder / "m.parquet" if form == "parquet" else folder)


@pytest.mark.parametrize("form", FORMS)
def test_every_name_of_a_language_is_its_code_in_every_form(tmp_path, form):
    for number, (name, code) in enumerate(NAMES.items()):
        source = given_in(tmp_path / str(number), form, name)
        assert [recording.lang for recording in source.recordings.values()] == [code], name
        assert not source.notes.losses


@pytest.mark.parametrize("form", FORMS)
def test_a_language_that_is_not_known_has_a_line(tmp_path, form):
    source = given_in(tmp_path, form, "Klingon")
    ((name, recording),) = source.recordings.items()
    assert recording.lang == "en"
    assert source.notes.losses == [
        f"recordings whose language is not known; give its ISO 639 code: taken to be of the source's (lang): 1: {name} "
        "(Klingon)"
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", ["und", "mul", "zxx"])
def test_codes_of_no_language_are_the_sources_with_a_remark(tmp_path, form, code):
    source = given_in(tmp_path, form, code)
    ((name, recording),) = source.recordings.items()
    assert recording.lang == "en" and not source.notes.losses
    assert source.notes.remarks["recordings without a language (und, mul, mis, zxx): taken to be of the source's"] == [
        f"{name} ({code})"
    ]


def test_codes_that_are_not_known_have_a_line(tmp_path):
    """One of two letters is no code; one of three may be any of ISO 639-3."""
    source = given_in(tmp_path / "two", "JSON", "xx")
    assert [recording.lang for recording in source.recordings.values()] == ["en"]
    assert "whose language is not known" in source.notes.losses[0] and "a.wav (xx)" in source.notes.losses[0]
    source = given_in(tmp_path / "three", "JSON", "gsw")
    assert [recording.lang for recording in source.recordings.values()] == ["gsw"]
    assert source.notes.remarks == {
        "recordings of a language that no recognizer knows by its code, which is kept": ["a.wav (gsw)"]
    }


@pytest.mark.parametrize("empty", ["", None])
def test_the_first_key_that_is_not_empty_gives_the_language(tmp_path, empty):
    wav(tmp_path / "json" / "a.wav"), wav(tmp_path / "table" / "a.wav")
    text(tmp_path / "json" / "a.json", json.dumps({"text": "Ja.", "language": empty, "lang": "de"}))
    row = {"audio": {"bytes": None, "path": "a.wav"}, "text": "Ja.", "language": empty, "lang": "de"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "table" / "m.parquet")
    for given in (tmp_path / "json", tmp_path / "table" / "m.parquet"):
        assert [recording.lang for recording in Source(given).recordings.values()] == ["de"]


def test_numbers_and_lists_are_no_languages(tmp_path):
    for number, given in enumerate((3, ["de"], float("nan"))):
        source = given_in(tmp_path / str(number), "JSON", given)
        assert "language is not known" in source.notes.losses[0] and json.dumps(given) in source.notes.losses[0]


def test_lines_of_one_file_in_two_languages_have_a_line(tmp_path):
    wav(tmp_path / "nemo" / "a.wav")
    rows = [{"audio_filepath": "a.wav", "text": t, "offset": n, "duration": 1, "lang": t} for n, t in enumerate("ab")]
    text(tmp_path / "nemo" / "m.json", [rows[0] | {"lang": "de"}, rows[1] | {"lang": "French"}])
    wav(tmp_path / "lhotse" / "a.wav")
    manifest(tmp_path / "lhotse", "de")
    row = {"id": "t", "recording_id": "a", "start": 0.5, "duration": 0.5, "text": "Oui.", "language": "fra"}
    text(tmp_path / "lhotse" / "more.jsonl", [row])
    for folder in ("nemo", "lhotse"):
        source = Source(tmp_path / folder)
        assert [recording.lang for recording in source.recordings.values()] == ["en"]
        assert source.notes.losses == [
            "recordings of several languages: taken to be of the source's (lang): 1: a.wav (de, fr)"
        ]
    cfg = DataPrepConfig(input=str(tmp_path / "nemo"), output=str(tmp_path / "out"), plan=PlanConfig(strict=True))
    with pytest.raises(ValueError, match=r"plan\.strict: local: recordings of several languages"):
        make_plan(cfg)


def test_what_annotations_of_speakers_say_of_the_recording_is_used(tmp_path):
    """One file for each speaker of a conversation."""
    for n in (1, 2):
        wav(tmp_path / f"call_spk{n}.wav")
        about = {"text": f"Ich bin {n}.", "language": "German", "group": "show", "split": "val", "dnsmos": 2.0 + n}
        text(tmp_path / f"call_spk{n}.json", json.dumps(about))
    (recording,) = Source(tmp_path).recordings.values()
    assert (recording.lang, recording.group, recording.split) == ("de", "show", "val")
    assert Source(tmp_path, min_dnsmos=3.5).reasons == {"call": "quality"}
    text(tmp_path / "call_spk2.json", json.dumps(about | {"split": "train"}))
    assert "give it several splits: train, val" in Source(tmp_path).rejected["call"].message
