import json

import pytest

from data_prep.demo import MANIFEST
from data_prep.manifest import read_input

GOOD = {"audio": "a.wav", "turns": [{"speaker": "x", "text": "hi", "start": 0, "end": 1}]}


def test_defaults_and_order(tmp_path):
    turns = [{"speaker": 3, "text": " late ", "start": 2.5, "end": 3, "channel": 1}, {"speaker": "x", "text": "early"}]
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps({"audio": "sub/a.wav", "turns": turns}) + "\n\n")
    (recording,) = read_input(file)
    assert (recording.id, recording.group, recording.split) == ("sub/a.wav", "sub/a.wav", None)
    assert recording.path == tmp_path / "sub" / "a.wav"
    early, late = recording.turns
    assert (early.number, early.start, early.end, early.channel) == (1, 0.0, None, None)
    assert (late.number, late.text, late.speaker, late.channel) == (0, "late", 3, 1)


def test_bundled_manifest_reads_and_names_existing_files():
    recordings = read_input(MANIFEST)
    assert len(recordings) == 25 and all(recording.path.is_file() for recording in recordings)
    assert {turn.speaker for recording in recordings for turn in recording.turns} == {0, 1}


def first_turn(**change):
    return {**GOOD, "turns": [{**GOOD["turns"][0], **change}]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**GOOD, "lenght": 3}, "line 2: unknown key 'lenght'; known are audio, id, group, split, turns"),
        ({"turns": GOOD["turns"]}, "line 2: 'audio' is missing"),
        ({**GOOD, "turns": []}, "line 2: 'turns' must be a list with a turn or more"),
        ({**GOOD, "split": "dev"}, 'line 2: \'split\' must be one of "train", "val", got "dev"'),
        ({**GOOD, "id": 7}, "line 2: 'id' must be a text, got 7"),
        ([GOOD], "line 2: expected a JSON object, got list"),
        (first_turn(txt="x"), "line 2, turn 0: unknown key 'txt'"),
        (first_turn(start="0:01"), "line 2, turn 0: 'start' must be a number of seconds, got \"0:01\""),
        (first_turn(speaker=None), "line 2, turn 0: 'speaker' must be a name or a whole number >= 0, got null"),
        (first_turn(speaker=True), "line 2, turn 0: 'speaker' must be"),
        (first_turn(speaker=-1), "line 2, turn 0: 'speaker' must be"),
        (first_turn(channel=0.5), "line 2, turn 0: 'channel' must be a whole number >= 0, got 0.5"),
        (first_turn(text=None), "line 2, turn 0: 'text' must be a text, got null"),
        ({**GOOD, "id": "a.wav"}, "two recordings have the id 'a.wav'"),
    ],
)
def test_each_mistake_names_file_line_and_field(tmp_path, record, message):
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError) as error:
        read_input(file)
    assert str(error.value).startswith(str(file)) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_line_that_is_no_json(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"audio": ')
    with pytest.raises(ValueError, match=f"{file}, line 1: not valid JSON"):
        read_input(file)


def test_plain_folder_pairs_audio_with_text(tmp_path):
    for name in ("b.flac", "a.wav", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("Hello\nthere.\n")
    (tmp_path / "c.txt").write_text("No audio.")
    recordings = read_input(tmp_path)
    texts = {recording.id: recording.turns[0].text for recording in recordings}
    assert texts == {"a": "Hello there.", "b": "", "c": "No audio."}
    (tmp_path / "a.mp3").touch()
    with pytest.raises(ValueError, match="two recordings have the id 'a'"):
        read_input(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="holds no audio files"):
        read_input(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such input"):
        read_input(tmp_path / "nowhere")
    (tmp_path / "m.jsonl").touch()
    with pytest.raises(ValueError, match="holds no recordings"):
        read_input(tmp_path / "m.jsonl")
