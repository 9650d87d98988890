"""A release of Common Voice as it is unpacked: tables of splits, of all that is valid, of what is not, and others."""

from layouts import Source, text, wav
from made_recordings import write_manifest

CLIPS = "client_id\tpath\tsentence\tup_votes\tlocale\n"
TABLES = {  # the numbers of their clips
    "train": [0],
    "dev": [1],
    "test": [2],
    "validated": [0, 1, 2, 3],
    "invalidated": [4],
    "other": [5],
}


def test_a_whole_release(tmp_path):
    for n in range(6):
        wav(tmp_path / "en" / "clips" / f"{n}.wav")
    for table, numbers in TABLES.items():
        rows = [f"c{n}\t{n}.wav\tSentence {n}.\t2\ten\n" for n in numbers]
        text(tmp_path / "en" / f"{table}.tsv", CLIPS + "".join(rows))
    text(tmp_path / "en" / "reported.tsv", "sentence\tsentence_id\tlocale\treason\nx\ty\ten\tz\n")
    text(tmp_path / "en" / "clip_durations.tsv", "clip\tduration[ms]\n0.wav\t1000\n")
    source = Source(tmp_path)
    found = {name[-5]: (entry.split, entry.group[:2]) for name, entry in source.recordings.items()}
    assert found == {"0": ("train", "c0"), "1": ("val", "c1"), "3": (None, "c3"), "5": (None, "c5")}
    assert all(len(entry.turns) == 1 for entry in source.recordings.values())
    assert source.reasons == {"en/clips/2.wav": "test_split", "en/clips/4.wav": "text_mismatch"}
    assert source.notes.set_aside == {".tsv (table)": ["en/clip_durations.tsv", "en/reported.tsv"]}


def test_lines_of_one_file_follow_the_one_that_gives_split_and_group(tmp_path):
    wav(tmp_path / "a.wav", 3.0)
    turns = [{"speaker": "a", "text": f"Text {n}.", "start": n, "end": n + 1} for n in range(2)]
    rows = [{"audio": "a.wav", "turns": turns[:1]}]
    rows += [{"audio": "a.wav", "group": "ann", "turns": turns[1:]}, {"audio": "a.wav", "id": "x", "split": "val"}]
    (entry,) = Source(write_manifest(tmp_path / "m.jsonl", rows)).recordings.values()
    assert (entry.split, entry.group, len(entry.turns)) == ("val", "ann", 2)
