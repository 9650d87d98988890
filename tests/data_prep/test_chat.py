"""CHAT transcripts (CHILDES, CallHome) beside their recordings: speakers, times, and what is said without the codes."""

import pytest
from layouts import Source, text, wav

from data_prep.inputs.transcripts.chat_text import spoken_text

CALL = """@UTF8
@PID:\t11312/t-00000000-1
@Begin
@Languages:\teng, spa
@Participants:\tA Subject, B Subject
@ID:\teng|CallHome|A||female|||Subject|||
@Media:\t4093, audio
@Comment:\tnot
\tspoken: 100_200
*A:\tso I was [/] I was <going to the> [//] at the (.) ice+cream shop ,
\tyou know ? \x15100_400\x15
%mor:\tadv|so pro|I 1_2
*B:\t&=laughs mhm . \x15410_500\x15
*A:\t&=laughs . \x15500_520\x15
*B:\t+< but xxx there . \x15%snd:"4093"_520_700\x15
*A:\twithout a time .
*B:\tthat is (be)cause +... \x15710_800\x15
@New Episode
*A:\tright \x15810_850\x15 +/. \x15860_900\x15
@End
"""
TURNS = [
    ("A", 0.1, 0.4, "so I was I was going to the at the ice cream shop, you know?"),
    ("B", 0.41, 0.5, "mhm."),
    ("B", 0.52, 0.7, None),  # not all of it was understood: to be transcribed
    ("A", 0.7, 0.7, "without a time."),
    ("B", 0.71, 0.8, "that is because..."),
    ("A", 0.81, 0.9, "right\u2014"),
]


def test_a_call(tmp_path):
    wav(tmp_path / "x.wav", channels=2)
    text(tmp_path / "x.cha", CALL)
    source = Source(tmp_path)
    assert source.said == {"x.wav": TURNS}
    assert source.recordings["x.wav"].lang == "en" and not source.rejected and not source.notes.remarks
    assert source.notes.losses == ["lines without a time, which are left out by name: 1: x.wav"]


def test_a_transcript_of_another_name_finds_its_media(tmp_path):
    wav(tmp_path / "audio" / "4093.wav"), wav(tmp_path / "audio" / "4094.wav")
    text(tmp_path / "cha" / "eng-4093.cha", CALL)
    text(tmp_path / "cha" / "lone.cha", CALL.replace("4093", "4095"))
    source = Source(tmp_path)
    assert source.said == {"audio/4093.wav": TURNS, "audio/4094.wav": None}
    assert source.recordings["audio/4093.wav"].lang == "en" and len(source.notes.unused) == 1
    assert source.notes.without_audio == ["cha/lone.cha"] and source.reasons == {"cha/lone": "audio_missing"}


def test_what_another_says_within_a_line_is_a_turn_without_length_at_its_place(tmp_path):
    lines = "*A:\tso I &*B:mhm_yes said &*C:xxx no . \x150_900\x15\n*A:\t0 &*B:ha . \x15900_960\x15\n"
    wav(tmp_path / "x.wav"), text(tmp_path / "x.cha", lines)
    assert Source(tmp_path).said == {
        "x.wav": [("A", 0.0, 0.9, "so I said no."), ("B", 0.338, 0.338, "mhm yes"), ("B", 0.93, 0.93, "ha")]
    }


LINES = {
    "I want [: wanted] it [* m:+ed] .": "I want it.",
    "<no no> [x 2] [!] yes [>] !": "no no no no yes!",
    "<I said <that I> [/] that I> [//] well [?] .": "I said that I that I well.",
    "&-uh &+fr frog &~ba &*MOT:yes &you_know b@l 0is good:: .": "uh fr- frog ba you know b good.",
    "Mister_Rogers \u2021 goin(g) (1.5) (1:02.) # home \u201e eh ?": "Mister Rogers, going home, eh?",
    '+" that is \u2191what he\u2193 said +!?': "that is what he said?!",
    "[- spa] +^ hola@s:spa [=! whispers] [% aside, to B] +//.": "hola\u2014",
    "the \u21abs-s\u21abshop \u2308open\u2309 \u23082 now\u23092 +/?": "the s-s-shop open now?",
    "\u201c hello \u201d , he said .": "hello, he said.",
    "caf\u00e9 123 0.5 +..?": "caf\u00e9 123 0.5?",
    "0 [=! laughing] .": "",
    "&=coughs (..) .": "",
}


@pytest.mark.parametrize("line", LINES)
def test_what_a_line_says(line):
    assert spoken_text(line) == (LINES[line], True)


@pytest.mark.parametrize("line", ["xxx .", "go xxx, now", "she saw yyy@si", "www ."])
def test_what_was_not_understood_is_no_text(line):
    assert spoken_text(line)[1] is False


BROKEN = {
    "no times": ("*A:\tone .\n*B:\ttwo .\n", "its lines have no times (bullets)"),
    "headers only": ("@Begin\n@End\n", "holds no lines of speech"),
    "another format": ("@Begin\nA: hello\n", "line 2: not CHAT"),
    "no speaker": ("*hello there\n", "line 1: expected *SPEAKER:"),
    "a million times": ("*A:\tno [x 1000000] . \x151_2\x15\n", "line 1: [x 1000000]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_transcripts_are_rejected_by_name(tmp_path, case):
    content, message = BROKEN[case]
    wav(tmp_path / "x.wav"), text(tmp_path / "x.cha", content)
    source = Source(tmp_path)
    assert source.reasons == {"x.wav": "bad_annotation"}
    assert f"x.cha: {message}" in source.rejected["x.wav"].message
