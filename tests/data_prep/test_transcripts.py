"""Transcripts of every common form, next to their recordings: none is ignored, none is trained on as it stands."""

import json
import tarfile

import pytest
from layouts import Source, text, wav

from data_prep.inputs.transcripts.subtitles import parse_subtitles

VTT = """WEBVTT

00:00.100 --> 00:00.400
<v Ann Lee>Hi there.</v>

00:00:00.500 --> 00:00:00.900
<v Bob>Hello,
Ann.</v>
"""
SRT = "1\n00:00:00,100 --> 00:00:00,400\nAnn: Hi.\n\n2\n00:00:00,500 --> 00:00:00,900\nBob: Hello.\n"
TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "Ann"
        xmin = 0
        xmax = 1
        intervals: size = 2
        intervals [1]:
            xmin = 0.1
            xmax = 0.4
            text = "Hi ""you""."
        intervals [2]:
            xmin = 0.4
            xmax = 1
            text = ""
    item [2]:
        class = "IntervalTier"
        name = "Bob"
        xmin = 0
        xmax = 1
        intervals: size = 1
        intervals [1]:
            xmin = 0.5
            xmax = 0.9
            text = "Hello."
    item [3]:
        class = "IntervalTier"
        name = "Bob - phones"
        xmin = 0
        xmax = 1
        intervals: size = 1
        intervals [1]:
            xmin = 0.5
            xmax = 0.9
            text = "HH"
"""
EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2024-01-01" FORMAT="3.0" VERSION="3.0">
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="100"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="400"/>
    <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="900"/>
  </TIME_ORDER>
  <TIER LINGUISTIC_TYPE_REF="utterance" PARTICIPANT="Ann" TIER_ID="A-tx">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
      <ANNOTATION_VALUE>Hi.</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER LINGUISTIC_TYPE_REF="utterance" TIER_ID="Bob">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE>Hello &amp; bye.</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER LINGUISTIC_TYPE_REF="translation" PARENT_REF="A-tx" PARTICIPANT="Ann" TIER_ID="A-ft">
    <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3" ANNOTATION_REF="a1">
      <ANNOTATION_VALUE>Hallo.</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
  </TIER>
</ANNOTATION_DOCUMENT>
"""
WORDS = [{"word": "Hi", "start": 0.1, "end": 0.2}, {"word": "there.", "start": 0.25, "end": 0.4}]

FORMS = {
    "vtt": (".vtt", VTT, [("Ann Lee", 0.1, 0.4, "Hi there."), ("Bob", 0.5, 0.9, "Hello, Ann.")]),
    "srt": (".srt", SRT, [("Ann", 0.1, 0.4, "Hi."), ("Bob", 0.5, 0.9, "Hello.")]),
    "srt of one": (
        ".srt",
        SRT.replace("Ann: ", "").replace("Bob: ", ""),
        [("0", 0.1, 0.4, "Hi."), ("0", 0.5, 0.9, "Hello.")],
    ),
    "textgrid": (".TextGrid", TEXTGRID, [("Ann", 0.1, 0.4, 'Hi "you".'), ("Bob", 0.5, 0.9, "Hello.")]),
    "ELAN": (".eaf", EAF, [("Ann", 0.1, 0.4, "Hi."), ("Bob", 0.5, 0.9, "Hello & bye.")]),
    "HTK words": (
        ".lab",
        "0 1000000 sil\n1000000 2000000 HELLO -12.5\n2500000 4000000 THERE\n30000000 32000000 BYE\n",
        [("0", 0.1, 0.4, "HELLO THERE"), ("0", 3.0, 3.2, "BYE")],
    ),
    "plain .lab": (".lab", "hello there ann\n", [("0", 0.0, None, "hello there ann")]),
    "trn": (".trn", "hello there (ann-x)\n", [("0", 0.0, None, "hello there")]),
    "ctm": (
        ".ctm",
        "x 1 0.1 0.1 Hi 0.9\nx 1 0.25 0.15 there.\nx 1 3.0 0.2 Yes.\n",
        [("1", 0.1, 0.4, "Hi there."), ("1", 3.0, 3.2, "Yes.")],
    ),
    "ctm of a call": (".ctm", "x A 0.1 0.1 Hi\nx B 0.2 0.1 Hm\n", [("A", 0.1, 0.2, "Hi", 0), ("B", 0.2, 0.3, "Hm", 1)]),
    "Audacity": (
        ".txt",
        "0.100000\t0.400000\tHi.\n0.500000\t0.900000\tHello.\n",
        [("0", 0.1, 0.4, "Hi."), ("0", 0.5, 0.9, "Hello.")],
    ),
    "Fisher": (
        ".txt",
        "# fe_03_00001.sph\n\n0.10 0.40 A: hi there\n0.50 0.90 B: hello\n",
        [("A", 0.1, 0.4, "hi there"), ("B", 0.5, 0.9, "hello")],
    ),
    "starts": (
        ".txt",
        "[00:00:00] A: Hi.\n[00:00:01] B: Hello.\n",
        [("A", 0.0, 1.0, "Hi."), ("B", 1.0, None, "Hello.")],
    ),
    "Whisper": (
        ".json",
        {
            "text": "Hi. Hello.",
            "language": "de",
            "segments": [
                {"id": 0, "start": 0.1, "end": 0.4, "text": " Hi.", "avg_logprob": -0.1},
                {"start": 0.5, "end": 0.9, "text": " Hello."},
            ],
        },
        [("0", 0.1, 0.4, "Hi."), ("0", 0.5, 0.9, "Hello.")],
    ),
    "whisperX": (
        ".json",
        {
            "segments": [{"start": 0.1, "end": 0.4, "text": " Hi there.", "speaker": "SPEAKER_01", "words": WORDS}],
            "word_segments": [],
        },
        [("SPEAKER_01", 0.1, 0.4, "Hi there.")],
    ),
    "whisperX, words of two speakers in a segment": (
        ".json",
        {
            "segments": [
                {
                    **{"start": 0.1, "end": 0.9, "text": "Hi there. Yes.", "speaker": "S0"},
                    "words": [
                        {"word": "Hi", "start": 0.1, "end": 0.2, "speaker": "S0"},
                        {"word": "there.", "start": 0.2, "end": 0.4},
                        {"word": "Yes.", "start": 0.5, "end": 0.9, "speaker": "S1"},
                    ],
                }
            ],
        },
        [("S0", 0.1, 0.4, "Hi there."), ("S1", 0.5, 0.9, "Yes.")],
    ),
    "whisperX, speakers of words alone": (
        ".json",
        {
            "segments": [
                {
                    **{"start": 0.1, "end": 0.4, "text": " Hi."},
                    "words": [{"word": "Hi.", "start": 0.1, "end": 0.4, "speaker": "S1"}],
                },
                {
                    **{"start": 0.5, "end": 0.9, "text": " Yes."},
                    "words": [{"word": "Yes.", "start": 0.5, "end": 0.9, "speaker": "S0"}],
                },
            ],
        },
        [("S1", 0.1, 0.4, "Hi."), ("S0", 0.5, 0.9, "Yes.")],
    ),
    "Deepgram": (
        ".json",
        {
            "metadata": {},
            "results": {
                "channels": [
                    {
                        "alternatives": [
                            {
                                "transcript": "hi",
                                "words": [
                                    {"word": "hi", "punctuated_word": "Hi.", "start": 0.1, "end": 0.4, "speaker": 1},
                                    {"word": "hm", "punctuated_word": "Hm.", "start": 0.5, "end": 0.6, "speaker": 0},
                                ],
                            }
                        ]
                    }
                ]
            },
        },
        [("1", 0.1, 0.4, "Hi."), ("0", 0.5, 0.6, "Hm.")],
    ),
    "Deepgram utterances": (
        ".json",
        {
            "results": {
                "channels": [{}, {}],
                "utterances": [{"start": 0.1, "end": 0.4, "channel": 1, "speaker": 0, "transcript": "Hi."}],
            }
        },
        [("1-0", 0.1, 0.4, "Hi.", 1)],
    ),
    "moshi": (
        ".json",
        {"alignments": [["Hi", [0.1, 0.2], "SPEAKER_MAIN"], ["there.", [0.25, 0.4], "SPEAKER_MAIN"]]},
        [("SPEAKER_MAIN", 0.1, 0.4, "Hi there.", 0)],
    ),
    "list": (
        ".json",
        [{"start": 0.1, "end": 0.4, "speaker": "Ann", "text": "Hi.", "confidence": 0.9}],
        [("Ann", 0.1, 0.4, "Hi.")],
    ),
    "words": (".json", {"words": WORDS}, [("0", 0.1, 0.4, "Hi there.")]),
    "Emilia": (
        ".json",
        {"id": "x", "wav": "x.mp3", "text": "Hi.", "duration": 1.0, "speaker": "EN_1", "language": "de", "dnsmos": 3.2},
        [("EN_1", 0.0, None, "Hi.")],
    ),
    **{
        f"WebDataset {key}": (".json", {key: "Hi."}, [("0", 0.0, None, "Hi.")])
        for key in ("text", "transcript", "transcription", "sentence")
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_its_turns(tmp_path, form):
    suffix, content, turns = FORMS[form]
    wav(tmp_path / "x.wav")
    text(tmp_path / f"x{suffix}", content if isinstance(content, str) else json.dumps(content))
    source = Source(tmp_path)
    assert source.said == {"x.wav": turns} and not source.rejected and not source.notes.losses


def test_language_speaker_quality_of_a_side_file_are_used(tmp_path):
    for name, speaker, quality in (("a", "DE_1", 3.2), ("b", "DE_1", 2.1), ("c", "DE_2", 3.3)):
        wav(tmp_path / f"{name}.wav")
        row = {"text": "Hallo.", "speaker": speaker, "language": "de", "dnsmos": quality}
        text(tmp_path / f"{name}.json", json.dumps(row))
    source = Source(tmp_path, min_dnsmos=3.0)
    assert {(recording.lang, recording.group) for recording in source.recordings.values()} == {
        ("de", "DE_1"),
        ("de", "DE_2"),
    }
    assert source.reasons == {"b.wav": "quality"}
    assert "DNSMOS 2.1 in its annotation is below min_dnsmos=3" in source.rejected["b.wav"].message
    of_speaker = [recording.group for recording in Source(tmp_path).recordings.values()]
    assert sorted(of_speaker) == ["DE_1", "DE_1", "DE_2"]  # a speaker is never on both sides


STRUCTURES = {
    "dialog without times": "A: So what?\nB: Nothing.\n",
    "numbers": "1 So what\n2 Nothing\n",
    "brackets": "[laughs] So what\n[coughs] Nothing\n",
    "comments": "# by Ann\n# in May\nSo what\n",
    "reversed times": "0.9 0.5 So what\n1.9 1.5 Nothing\n",
    "empty": " \n",
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_a_txt_that_is_no_plain_text_is_never_trained_on(tmp_path, case):
    wav(tmp_path / "x.wav")
    text(tmp_path / "x.txt", STRUCTURES[case])
    source = Source(tmp_path)
    assert source.reasons == {"x.wav": "bad_annotation"} and "x.txt: it" in source.rejected["x.wav"].message
    if case == "empty":
        assert "it is empty: write the text that is spoken, or remove it" in source.rejected["x.wav"].message


@pytest.mark.parametrize("content", ["1984 was a year.\nIt was cold.\n", "Well: what now?\nI see.\nYes, I do.\n"])
def test_a_plain_text_stays_one_turn(tmp_path, content):
    wav(tmp_path / "x.wav")
    text(tmp_path / "x.txt", content)
    assert Source(tmp_path).said == {"x.wav": [("0", 0.0, None, " ".join(content.split()))]}


def test_transcripts_that_name_no_speaker_are_remarked_and_broken_ones_rejected(tmp_path):
    for name in ("a", "b", "c", "d"):
        wav(tmp_path / f"{name}.wav")
    text(tmp_path / "a.srt", SRT.replace("Ann: ", "").replace("Bob: ", ""))
    text(tmp_path / "b.TextGrid", "no grid")
    text(tmp_path / "c.json", json.dumps({"segments": [{"start": "x", "end": 1, "text": "Hi."}]}))
    text(tmp_path / "d.vtt", "WEBVTT\n")
    source = Source(tmp_path)
    assert source.notes.remarks == {"transcripts that name no speaker: taken as one speaker each": ["a.wav"]}
    assert source.reasons == dict.fromkeys(["b.wav", "c.wav", "d.wav"], "bad_annotation")
    assert "c.json: segments, entry 0: 'start' must be a number of seconds" in source.rejected["c.wav"].message


def test_keys_of_webdataset_end_at_the_first_dot(tmp_path):
    wav(tmp_path / "000000.audio.flac")
    text(tmp_path / "000000.json", '{"text": "Hi."}')
    text(tmp_path / "000000.cls", "3")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("000000.audio.flac", "000000.json", "000000.cls"):
            tar.add(tmp_path / name, name)
    source = Source(tmp_path / "x.tar")
    assert source.said == {"x.tar/000000.audio.flac": [("0", 0.0, None, "Hi.")]}
    assert source.notes.set_aside == {".cls": ["x.tar/000000.cls"]}


def test_further_side_files_and_json_without_a_text_are_named(tmp_path):
    for name in ("a", "b"):
        wav(tmp_path / f"{name}.wav")
    text(tmp_path / "a.rttm", "SPEAKER a 1 0.1 0.3 <NA> <NA> Ann <NA> <NA>\n")
    text(tmp_path / "a.txt", "Hi.")
    text(tmp_path / "b.json", '{"bitrate": 128}')
    text(tmp_path / "b.txt", "Hello.")
    source = Source(tmp_path)
    assert source.said == {"a.wav": [("Ann", 0.1, 0.4, None)], "b.wav": [("0", 0.0, None, "Hello.")]}
    assert source.notes.set_aside == {
        ".json (neither turns nor a text in it)": ["b.json"],
        ".txt (another side file of the recording counts)": ["a.txt"],
    }


def test_phones_and_numbers_of_lines_are_never_text(tmp_path):
    for name in ("phones", "context", "numbered", "two", "words", "trn"):
        wav(tmp_path / f"{name}.wav")
    text(tmp_path / "phones.lab", "0 1000000 sil\n1000000 2000000 hh\n2000000 3000000 ax\n3000000 4000000 l\n")
    text(tmp_path / "context.lab", "0 1000000 xx^xx-sil+m=i/A:-4+1\n1000000 2000000 xx^sil-m+i=z/A:-3+1\n")
    text(tmp_path / "numbered.eaf", EAF.replace("Hi.", "story_001").replace("Hello &amp; bye.", "story_002"))
    text(tmp_path / "two.eaf", EAF.replace('TIER_ID="Bob"', 'PARTICIPANT="Ann" TIER_ID="Bob"'))
    text(tmp_path / "words.eaf", "<html>")
    text(tmp_path / "trn.trn", "a text without a name\n")
    source = Source(tmp_path)
    assert source.said == {"phones.wav": None, "context.wav": None}
    assert source.notes.set_aside == {".lab (neither turns nor a text in it)": ["context.lab", "phones.lab"]}
    assert set(source.reasons.values()) == {"bad_annotation"} and len(source.reasons) == 4
    assert "'A-tx' and 'Bob' are both of 'Ann'" in source.rejected["two.wav"].message
    assert "numbers of lines" in source.rejected["numbered.wav"].message


def test_names_in_all_scripts_are_speakers():
    """Vowel signs are parts of names."""
    told = SRT.replace("Ann:", "सीता:").replace("Bob:", "हरि:")
    turns = parse_subtitles(told, "srt")
    assert [(turn.speaker, turn.text) for turn in turns] == [("सीता", "Hi."), ("हरि", "Hello.")]
