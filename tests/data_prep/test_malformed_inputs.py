"""Malformed tables and transcripts: one line that names the place, and never a text of several recordings."""

import pytest
from layouts import Source, text, wav

# ------------------------------------------------------------------------------------------------------- tables


def test_quotation_marks_of_a_tab_separated_table_are_text(tmp_path):
    """Common Voice writes them as they are, pandas doubles them; neither may swallow the rows behind."""
    said = ['"Yes, he said.', "She left.", '"""Wait!"" she cried."', '"Good" day.']
    rows = [f"c{n}\t{n}.wav\t{sentence}\ten\n" for n, sentence in enumerate(said)]
    for n in range(len(said)):
        wav(tmp_path / "clips" / f"{n}.wav")
    text(tmp_path / "train.tsv", "client_id\tpath\tsentence\tlocale\n" + "".join(rows))
    source = Source(tmp_path)
    assert [turns[0][3] for turns in source.said.values()] == [
        '"Yes, he said.', "She left.", '"Wait!" she cried.', '"Good" day.'
    ]  # fmt: skip
    assert source.notes.layouts == {"common_voice": 4}


def test_a_quotation_mark_that_is_not_closed_ends_the_plan_with_a_line(tmp_path):
    for n in range(3):
        wav(tmp_path / f"{n}.wav")
    text(tmp_path / "metadata.csv", 'file_name,text\n0.wav,One.\n1.wav,"He said, hi\n2.wav,Three.\n')
    with pytest.raises(ValueError, match=r"metadata\.csv: after line 2: not CSV \(unexpected end of data\)"):
        Source(tmp_path)


@pytest.mark.parametrize("suffix, separator", [("csv", ","), ("tsv", "\t")])
def test_a_text_that_holds_the_separator_is_not_cut_in_silence(tmp_path, suffix, separator):
    wav(tmp_path / "0.wav"), wav(tmp_path / "1.wav")
    rows = [["file_name", "text"], ["0.wav", "So", "what?"], ["1.wav", "Fine.", ""]]
    text(tmp_path / f"metadata.{suffix}", "".join(f"{separator.join(row)}\n" for row in rows))
    source = Source(tmp_path)
    assert source.reasons == {"0.wav": "bad_annotation"} and list(source.recordings) == ["1.wav"]
    assert "row 1: has more fields than the first line has names" in source.rejected["0.wav"].message


def test_a_table_that_is_none_is_set_aside(tmp_path):
    wav(tmp_path / "a.wav"), text(tmp_path / "a.txt", "Hi.")
    text(tmp_path / "b.csv", f"a,b\n{'x' * 140_000},1\n")  # beyond the longest field that the module csv reads
    assert Source(tmp_path).notes.set_aside == {".csv (table)": ["b.csv"]}


def test_rows_with_times_and_without_speakers_are_remarked(tmp_path):
    wav(tmp_path / "a.wav", 3.0)
    rows = [{"audio_filepath": "a.wav", "offset": n, "duration": 1, "text": f"Text {n}."} for n in range(2)]
    text(tmp_path / "m.json", rows)
    (remark,) = Source(tmp_path).notes.remarks
    assert remark == "transcripts that name no speaker: taken as one speaker each"


def test_lines_of_ljspeech_find_their_files_by_folder_too(tmp_path):
    for name in ("s1/001", "s2/001", "s2/002"):
        wav(tmp_path / "wavs" / f"{name}.wav")
    text(tmp_path / "metadata.csv", "s1/001|One.\nother/s2/001.wav|Two.\n002|Three.\n001|Which?\n")
    source = Source(tmp_path)
    assert {name: turns[0][3] for name, turns in source.said.items()} == {
        "wavs/s1/001.wav": "One.",
        "wavs/s2/001.wav": "Two.",
        "wavs/s2/002.wav": "Three.",
    }
    message = "metadata.csv, line 4 describes it, but wavs/s1/001.wav and wavs/s2/001.wav have this name"
    assert source.rejected["001"].message == message


# ------------------------------------------------------------------------------------------- speech recognition

COMMANDS = {
    "sox -t wav a.wav -t wav - speed 0.9 |": None,  # as Kaldi's own script perturbs a folder
    "ffmpeg -ss 10 -i a.wav -f wav - |": None,
    "sph2pipe -f wav -t 10:20 a.wav |": None,
    "sox a.wav -t wav - remix 1 2 |": None,
    "sox a.wav -r 8000 -t wav - remix 2 |": 1,
    "sph2pipe -f wav -p -c 1 a.wav |": 0,
    "ffmpeg -i a.wav -ac 1 -ar 8000 -f wav - |": "mixed",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_kaldi_that_change_times_are_refused(tmp_path, command):
    wav(tmp_path / "a.wav", channels=2)
    text(tmp_path / "wav.scp", f"r {command}\n"), text(tmp_path / "text", "r so what\n")
    source = Source(tmp_path, format="kaldi")
    if COMMANDS[command] is None:
        assert source.reasons == {"r": "audio_missing"} and "command that is not run" in source.rejected["r"].message
    else:
        (recording,) = source.recordings.values()
        assert recording.turns[0].channel == (None if COMMANDS[command] == "mixed" else COMMANDS[command])


RECORDING = {"id": "a", "sources": [{"type": "file", "source": "a.wav"}], "sampling_rate": 8000}
LHOTSE = {
    "a supervision without its start": [{"id": "s", "recording_id": "a", "duration": 1}],
    "a supervision of nothing": [{"id": "s", "recording_id": "a", "start": 0, "duration": 1}, {"id": "t", "start": 1}],
    "times that are none": [{"id": "s", "recording_id": "a", "start": "soon", "duration": 1}],
    "a row that is none": [{"id": "s", "recording_id": "a", "start": 0, "duration": 1}, 5],
    "a cut": [{"id": "c", "type": "MonoCut", "recording": RECORDING, "supervisions": [{"text": "hi"}]}],
}


@pytest.mark.parametrize("case", LHOTSE)
def test_malformed_lhotse_rows_are_errors_with_their_line(tmp_path, case):
    wav(tmp_path / "a.wav"), text(tmp_path / "recordings.jsonl", [RECORDING])
    text(tmp_path / "x.jsonl", [{"id": "s", "recording_id": "a", "start": 0, "duration": 1}, *LHOTSE[case]])
    if case == "a cut":
        text(tmp_path / "x.jsonl", LHOTSE[case])
    with pytest.raises(ValueError, match=r"x\.jsonl, line \d"):
        Source(tmp_path, format="lhotse")


def test_broken_lines_of_kaldi(tmp_path):
    wav(tmp_path / "a.wav"), text(tmp_path / "wav.scp", "a a.wav\n"), text(tmp_path / "text", "u hi\n")
    text(tmp_path / "reco2file_and_channel", "a\n"), text(tmp_path / "segments", "u a 0 0.5\n")
    assert Source(tmp_path).said == {"a": [("a", 0.0, 0.5, "hi")]}
    text(tmp_path / "segments", "u a nan 0.5\n")
    with pytest.raises(ValueError, match="segments: u: expected recording, start, end"):
        Source(tmp_path)


# -------------------------------------------------------------------------------------------------- transcripts

SCROLLING = """WEBVTT
Kind: captions

00:00:00.160 --> 00:00:01.310 align:start position:0%
 \nhello<00:00:00.400><c> world</c>

00:00:01.310 --> 00:00:01.320 align:start position:0%
hello world
 \n
00:00:01.320 --> 00:00:02.550 align:start position:0%
hello world
how<00:00:01.500><c> are</c><c> you</c>

00:00:02.550 --> 00:00:02.560 align:start position:0%
how are you
 \n
"""


def test_lines_of_scrolling_captions_count_once_and_without_their_times(tmp_path):
    """As video platforms write them, and as they are when converted to SRT."""
    wav(tmp_path / "a.wav", 3.0), text(tmp_path / "a.en.vtt", SCROLLING)
    wav(tmp_path / "b.wav", 3.0)
    times = ["00,160 --> 00:00:01,310", "01,310 --> 00:00:01,320", "01,320 --> 00:00:02,550", "02,550 --> 00:00:02,560"]
    said = ["hello world", "hello world", "hello world\nhow are you", "how are you"]
    cues = zip(range(1, 5), times, said, strict=True)
    text(tmp_path / "b.srt", "".join(f"{n}\n00:00:{time}\n{lines}\n\n" for n, time, lines in cues))
    turns = [("0", 0.16, 1.31, "hello world"), ("0", 1.32, 2.55, "how are you")]
    assert Source(tmp_path).said == {"a.wav": turns, "b.wav": turns}


def test_lines_on_a_recording_that_another_file_describes_already_have_a_line(tmp_path):
    wav(tmp_path / "call.wav"), wav(tmp_path / "a.wav"), wav(tmp_path / "b.wav")
    text(tmp_path / "c1.ctm", "call 1 0.0 0.5 hi\n"), text(tmp_path / "c2.ctm", "call 1 0.5 0.4 you\n")
    text(tmp_path / "a.stm", "a 1 x 0 0.5 hello\nb 1 y 0 0.5 bye\n")
    source = Source(tmp_path)
    assert source.said == {"a.wav": [("x", 0.0, 0.5, "hello")], "b.wav": None, "call.wav": [("1", 0.0, 0.5, "hi")]}
    assert source.notes.losses == [
        "further annotations of one recording: 1: c2.ctm: call.wav",
        "lines on other recordings in an annotation of this name: 1: a.wav",
    ]


def test_a_line_that_is_said_twice_stays(tmp_path):
    said = ["No.", "No.", "Yes."]
    wav(tmp_path / "a.wav", 3.0)
    text(tmp_path / "a.srt", "".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{said[n]}\n\n" for n in range(3)))
    assert [turn[3] for turn in Source(tmp_path).said["a.wav"]] == said
