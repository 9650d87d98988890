"""RTTM, STM, CTM and trn: names with blanks, words that are digits, one file for many recordings."""

import time
import tracemalloc

import pytest
from layouts import Source, text, wav

from data_prep.inputs.transcripts.labels import parse_labels
from data_prep.inputs.transcripts.nist import parse_ctm, parse_rttm, parse_stm


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b"])
def test_lines_end_at_line_feeds_alone(separator):
    said = f"First{separator}second."
    turns = parse_stm(f"a 1 ann 0.1 0.5 {said}\r\na 1 bob 0.5 0.9 Yes.\n")["a"]
    assert [turn.text for _, turn in turns] == [said, "Yes."]
    assert [turn.text for turn in parse_labels(f"0.1\t0.5\t{said}\n0.5\t0.9\tYes.\n")] == [said, "Yes."]


def test_names_with_blanks_in_nist_files(tmp_path):
    wav(tmp_path / "my call.wav"), wav(tmp_path / "call 2 3.wav")
    text(
        tmp_path / "my call.rttm",
        "SPEAKER my call 1 0.50 0.30 <NA> <NA> Ann Lee <NA> <NA>\n"
        "SPEAKER my call 1 0.9 0.1 <NA> <NA> Ann Roe 0.9 <NA>\n",
    )
    text(tmp_path / "call 2 3.stm", "call 2 3 1 Ann 0.5 0.9 4 5 numbers\n")
    assert Source(tmp_path).said == {
        "call 2 3.wav": [("Ann", 0.5, 0.9, "4 5 numbers")],
        "my call.wav": [("Ann Lee", 0.5, 0.8, None), ("Ann Roe", 0.9, 1.0, None)],
    }
    text(tmp_path / "my call.rttm", "SPEAKER x 1 0.50 0.30 <NA> <NA> <NA> <NA> <NA>\n")
    assert Source(tmp_path).reasons == {"my call.wav": "bad_annotation"}


@pytest.mark.parametrize("named", ["call.ctm", "all.ctm"])
def test_words_that_are_digits_are_words_in_ctm(tmp_path, named):
    """And neither times nor confidences, whatever the file is called."""
    wav(tmp_path / "call.wav", 20.0), wav(tmp_path / "my call 2.wav", 20.0)
    lines = ["call 1 12 1 5 0.98", "call 1 13.0 0.5 7", "call 1 13.5 0.5 1 1 lex ann", "call 1 14 1 20 NA"]
    text(tmp_path / named, "\n".join(lines))
    rows = [("1", 12, 13.5, "5 7"), ("ann", 13.5, 14, "1"), ("1", 14, 15, "20")]
    assert Source(tmp_path).said["call.wav"] == rows
    (tmp_path / named).unlink()
    text(tmp_path / named.replace("call", "my call 2"), "my call 2 1 12 1 5 0.98\nmy call 2 1 13 1 6\n")
    source = Source(tmp_path)
    assert source.said == {"call.wav": None, "my call 2.wav": [("1", 12, 14, "5 6")]} and not source.rejected


@pytest.mark.parametrize("confidence", ["1e-05", "95", "100", "-3", "1.", "NA", "0.9"])
@pytest.mark.parametrize("names", [(), ("call",)])
def test_every_number_is_a_confidence_in_ctm(confidence, names):
    lines = [
        f"call 1 12 1 hello {confidence}",
        f"call 1 13 1 5 {confidence} lex",
        f"call 1 14 1 six {confidence} lex ann",
    ]
    turns = parse_ctm("\n".join(lines), names)
    assert {file: [(channel, turn.speaker, turn.text) for channel, turn in rows] for file, rows in turns.items()} == {
        "call": [("1", "1", "hello 5"), ("1", "ann", "six")]
    }


def test_a_ctm_of_no_form_names_its_line():
    with pytest.raises(ValueError, match="line 2: expected file, channel, start, duration, word"):
        parse_ctm("call 1 12 1 hello 95\ncall 1 x 1 hello\n")


@pytest.mark.parametrize("names", [(), ("my call",), ("x" * 100,)])
def test_a_long_line_takes_neither_long_nor_much_memory(names):
    said = "so what " * 50_000
    tracemalloc.start()
    before = time.process_time()
    ((_, turn),) = parse_stm(f"my call 1 ann 0.1 0.5 {said}\n", names)["my call"]
    ((_, named),) = parse_rttm(f"SPEAKER my call 1 0.1 0.5 <NA> <NA> {said}\n", names)["my call"]
    assert time.process_time() - before < 5 and tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
    assert turn.text == named.speaker == said.strip()


@pytest.mark.parametrize("suffix", [".rttm", ".stm", ".ctm", ".trn"])
def test_one_file_for_many_recordings(tmp_path, suffix):
    lines = {
        ".rttm": "SPEAKER {} 1 0.1 0.3 <NA> <NA> Ann <NA> <NA>\n",
        ".stm": "{} 1 Ann 0.1 0.4 Hi.\n",
        ".ctm": "{} 1 0.1 0.3 Hi. 1.0 lex Ann\n",
        ".trn": "Hi. ({})\n",
    }
    for name in ("a", "sub/b", "c"):
        wav(tmp_path / f"{name}.wav")
    text(tmp_path / f"all{suffix}", "".join(lines[suffix].format(name) for name in ("a", "b", "gone")))
    source = Source(tmp_path)
    turn = ("0", 0.0, None, "Hi.") if suffix == ".trn" else ("Ann", 0.1, 0.4, None if suffix == ".rttm" else "Hi.")
    assert source.said == {"a.wav": [turn], "sub/b.wav": [turn], "c.wav": None}
    assert source.notes.without_audio == [f"all{suffix}: gone"] and not source.rejected
