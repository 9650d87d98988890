"""Malformed tables and transcripts: one line that names the place, and never a text of several recordings."""

import json
import random

import pytest
from layouts import Source, text, wav

from data_prep.inputs.side_files import parse_side_file

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


# -------------------------------------------------------------------------------------------------- transcripts

WORD = {"word": "hi", "start": 0, "end": 1}
TRANSCRIPTS = [
    {"turns": [{"speaker": "a", "text": "hi", "start": 0, "end": 1}]},
    {"alignments": [["hi", [0.1, 0.3], "SPEAKER_MAIN"]]},
    {"results": {"channels": [{"alternatives": [{"words": [WORD]}]}]}},
    {"results": {"channels": [], "utterances": [{"start": 0, "end": 1, "transcript": "hi", "channel": 0}]}},
    {"segments": [{"start": 0, "end": 1, "text": "hi", "words": [WORD]}], "language": "en"},
    [{"start": 0, "duration": 1, "words": [WORD]}],
]
ODD = [None, True, 5, 1.5, "", "x", [], {}, [1], ["a"], [[1]], [None], [{}], {"a": 1}, float("nan"), 10**400]


@pytest.mark.parametrize("number", range(len(TRANSCRIPTS)))
def test_json_with_anything_in_any_place_is_a_transcript_or_an_error_of_one_line(number):
    """Any other exception would be a traceback, and end the plan of all recordings."""
    draw = random.Random(number)
    failed = 0
    for _ in range(300):
        root = json.loads(json.dumps({"root": TRANSCRIPTS[number]}))
        parent, key = draw.choice(list(_places(root, "root")))
        parent[key] = draw.choice(ODD)
        try:
            parse_side_file(".json", json.dumps(root["root"]).encode(), "x")
        except ValueError as error:
            failed += 1
            assert str(error)
    assert failed > 50


def _places(parent, key):
    """Every value of nested lists and dictionaries, as the one that holds it and its key or index."""
    yield parent, key
    inner = parent[key]
    keys = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
    for below in keys:
        yield from _places(inner, below)
