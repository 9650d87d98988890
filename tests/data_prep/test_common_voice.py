"""A release of Common Voice as it is unpacked: tables of splits, of all that is valid, of what is not, and others."""

from layouts import Source, text, wav
from made_recordings import write_manifest

from data_prep.config import DataPrepConfig
from data_prep.inputs.plan import make_plan

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


def test_a_speaker_of_the_test_or_dev_split_is_not_in_train(tmp_path):
    """Most of a release is in validated.tsv alone, among it other clips of the speakers of test.tsv and dev.tsv."""
    speakers = ["ann", "dev", "test", "ann", "dev", "test", "new"]
    for n in range(len(speakers)):
        wav(tmp_path / "en" / "clips" / f"{n}.wav")
    for table, numbers in {"train": [0], "dev": [1], "test": [2], "validated": range(6), "other": [6]}.items():
        rows = [f"{speakers[n]}\t{n}.wav\tSentence {n}.\t2\ten\n" for n in numbers]
        text(tmp_path / "en" / f"{table}.tsv", CLIPS + "".join(rows))
    plan = make_plan(DataPrepConfig(input=str(tmp_path / "en"), output=str(tmp_path / "out")))
    splits = {row["id"][-5]: row["split"] for row in plan.columns("id", "split")}
    assert splits == {"0": "train", "1": "val", "3": "train", "4": "val", "6": None}
    left_out = {rejection.audio: (rejection.reason, rejection.message) for rejection in plan.rejections}
    assert left_out == {
        "clips/2.wav": ("test_split", "of the data's own test split"),
        "clips/5.wav": (
            "test_split",
            "without a split, but of the group test, which is in the data's own test split",
        ),
    }
    (source,) = plan.understood
    line = "  left out without a split, since others of their group are in the test split: 1: clips/5.wav"
    assert line in source.lines() and not source.losses()


def test_what_the_data_divide_themselves_stays_and_is_told(tmp_path):
    for name in "abc":
        wav(tmp_path / "clips" / f"{name}.wav")
    for table, name in {"train": "a", "test": "b", "dev": "c"}.items():
        text(tmp_path / f"{table}.tsv", f"{CLIPS}ann\t{name}.wav\tSentence {name}.\t2\ten\n")
    source = Source(tmp_path)
    assert {name: entry.split for name, entry in source.recordings.items()} == {
        "clips/a.wav": "train",
        "clips/c.wav": "val",
    }
    assert source.notes.remarks == {"groups in the test split and in another, as the data give it": ["ann"]}


def test_lines_of_one_file_follow_the_one_that_gives_split_and_group(tmp_path):
    wav(tmp_path / "a.wav", 3.0)
    turns = [{"speaker": "a", "text": f"Text {n}.", "start": n, "end": n + 1} for n in range(2)]
    rows = [{"audio": "a.wav", "turns": turns[:1]}]
    rows += [{"audio": "a.wav", "group": "ann", "turns": turns[1:]}, {"audio": "a.wav", "id": "x", "split": "val"}]
    (entry,) = Source(write_manifest(tmp_path / "m.jsonl", rows)).recordings.values()
    assert (entry.split, entry.group, len(entry.turns)) == ("val", "ann", 2)
