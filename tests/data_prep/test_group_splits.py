"""Groups and the splits that the data give: a voice is not in both, unless the data say so."""

from layouts import wav
from made_recordings import write_manifest

from data_prep.config import DataPrepConfig
from data_prep.inputs.plan import make_plan

ROWS = [  # name, group, split
    ("a", "ann", "val"),
    ("b", "ann", None),
    ("c", "bob", None),
    ("d", "cid", "train"),
    ("e", "cid", "val"),
    ("f", "cid", None),
]


def test_recordings_without_a_split_follow_their_group(tmp_path):
    rows = []
    for name, group, split in ROWS:
        wav(tmp_path / f"{name}.wav")
        rows.append({"audio": f"{name}.wav", "group": group} | ({"split": split} if split else {}))
    plan = make_plan(
        DataPrepConfig(input=str(write_manifest(tmp_path / "m.jsonl", rows)), output=str(tmp_path / "out"))
    )
    splits = {row["id"].removeprefix("local/")[0]: row["split"] for row in plan.columns("id", "split")}
    assert splits == {"a": "val", "b": "val", "c": None, "d": "train", "e": "val", "f": "val"}
    (source,) = plan.understood
    assert "  groups on both sides of the split, as the data give it: 1: cid" in source.lines()
