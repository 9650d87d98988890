"""Groups and the splits that the data give: a voice is not in both, unless the data say so."""

import json
import tarfile

from layouts import text, wav
from made_recordings import write_manifest

from csm.data.dataset import ShardedDataset
from data_prep.config import DataPrepConfig
from data_prep.inputs.plan import make_plan
from data_prep.prepare import prepare

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


def test_half_of_the_speakers_of_a_tar_are_held_out(tmp_path, config):
    """Each speaker whole, and the same ones again if more speakers come."""

    def splits(speakers: int) -> dict[str, set[str]]:
        file = tmp_path / f"{speakers}.tar"
        with tarfile.open(file, "w") as tar:
            for n in range(2 * speakers):
                about = {"text": f"Text {n}.", "speaker": f"speaker {n // 2}"}
                tar.add(wav(tmp_path / f"{n}.wav", 1.0, seed=n), f"{n}.wav")
                tar.add(text(tmp_path / f"{n}.json", json.dumps(about)), f"{n}.json")
        output = tmp_path / f"out{speakers}"
        prepare(config(file, output=output, **{"pack.val_fraction": 0.5}))
        return _splits_of_groups(ShardedDataset(output))

    some, more = splits(6), splits(10)
    assert len(some) == 6 and len(more) == 10 and all(len(found) == 1 for found in more.values())
    assert set().union(*some.values()) == {"train", "val"}
    assert some == {group: found for group, found in more.items() if group in some}
    assert 2 <= sum(found == {"val"} for found in more.values()) <= 8


def _splits_of_groups(dataset: ShardedDataset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for sample in map(dataset.read, range(len(dataset))):
        found.setdefault(sample.group, set()).add(sample.split)
    return found
