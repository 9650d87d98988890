"""The report's numbers against independent ones, and the page as a browser would get it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from csm.config import TokenizerConfig, TokenizerKind
from csm.data.dataset import ShardedDataset
from csm.data.lengths import load_lengths
from csm.data.plan import EpochPlan
from csm.data.sample import Sample, Turn
from csm.text import load_tokenizer
from data_prep.dataset.takedown import takedown
from data_prep.report import data as report_data
from data_prep.report import tables as report_tables
from data_prep.report.report import JSON_FILE, write_report
from tests.data.made_datasets import CODEC, made_dataset, made_sample, write_dataset
from tests.data_prep.report_datasets import (
    HOSTILE,
    demo_samples,
    fitted_codec,
    ledger_rows,
    rejects,
    write_report_dataset,
    write_tables,
)


@pytest.fixture(scope="module")
def codec():
    return fitted_codec()


@pytest.fixture(scope="module")
def samples(codec) -> list[Sample]:
    made = demo_samples(codec, 8)
    made[5].turns[0].text = HOSTILE
    return made


@pytest.fixture(scope="module")
def reported(tmp_path_factory, codec, samples) -> Path:
    """A dataset with all of its tables, and its report."""
    folder = write_report_dataset(tmp_path_factory.mktemp("report") / "demo", samples, codec)
    write_tables(folder, samples)
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def numbers(reported) -> dict:
    return json.loads((reported / JSON_FILE).read_text())


@pytest.fixture(scope="module")
def page(reported) -> str:
    return (reported / "report.html").read_text()


class Parsed(HTMLParser):
    """Elements by name, and all text; names of elements that are never closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: dict[str, list[dict]] = {}
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.attributes.setdefault(tag, []).append(dict(attrs))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs) -> None:
        self.attributes.setdefault(tag, []).append(dict(attrs))

    def handle_data(self, data) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


def test_hours_flow_adds_up(numbers, samples) -> None:
    rows = ledger_rows(samples)
    flow = numbers["flow"]
    assert flow["whole"]["ms_in"] == sum(row.ms for row in rows)
    assert flow["whole"]["ms_kept"] == sum(row.ms for row in rows if row.stage == "kept")
    by_reason = Counter()
    for row in rows:
        if row.stage != "kept":
            by_reason[row.stage, row.reason] += row.ms
    assert {(loss["stage"], loss["reason"]): loss["ms"] for loss in flow["losses"]} == by_reason
    assert [loss["stage"] for loss in flow["losses"]] == ["plan", "vad", "transcribe", "pack"]
    assert flow["recordings"] == len({row.recording for row in rows}) == 10
    for name in ("sources", "langs"):
        parts = flow[name].values()
        assert sum(part["ms_in"] for part in parts) == flow["whole"]["ms_in"]
        for part in [*parts, flow["whole"]]:
            assert part["ms_in"] == part["ms_kept"] + sum(part["lost"].values())
    assert flow["sources"]["noise"]["ms_in"] == 7007 + 60_013


def test_tables_are_the_same_however_they_are_read(reported, monkeypatch) -> None:
    """Three rows at a time, with strings that differ from batch to batch, as in tables of millions of rows."""

    def read() -> list:
        readers = (report_tables.read_flow, report_tables.read_rejections, report_tables.read_duplicates)
        return [reader(reported) for reader in readers]

    at_once = read()
    monkeypatch.setattr(report_tables, "_BATCH_ROWS", 3)
    monkeypatch.setattr(report_tables, "_COMPACT_ROWS", 1)
    assert read() == at_once
    index = ShardedDataset(reported)
    contents = report_data.read_index(index)[0]
    monkeypatch.undo()
    assert contents == report_data.read_index(index)[0]


def test_contents_and_turns(reported, numbers, samples) -> None:
    contents = numbers["contents"]
    turns = [turn for sample in samples for turn in sample.turns]
    frames = sum(turn.num_frames for turn in turns)
    assert (contents["conversations"], contents["turns"]) == (8, len(turns))
    assert contents["hours"] == pytest.approx(frames / 12.5 / 3600)
    assert contents["loss_frames"] == sum(turn.num_frames for turn in turns if turn.loss) < frames
    assert contents["speakers"] == sum(len({turn.speaker for turn in sample.turns}) for sample in samples)
    assert contents["groups"] == 3 and contents["groups_on_both_sides"] == 2
    seconds = np.array([turn.end - turn.start for turn in turns])
    gaps = np.array([turn.gap for sample in samples for turn in sample.turns[1:]])
    for name, values in (("turn_seconds", seconds), ("gap_seconds", gaps)):
        found = numbers["distributions"][name]
        assert found["count"] == len(values) == sum(found["counts"])
        assert found["quantiles"]["p50"] == pytest.approx(np.median(values), abs=1e-5)
        assert found["counts"] == np.histogram(values.astype(np.float32), found["edges"])[0].tolist()
    narrow = sum(t.end - t.start for i, s in enumerate(samples) if i % 4 == 0 for t in s.turns)
    assert numbers["turns_looked_at"]["narrow_share"] == pytest.approx(narrow / seconds.sum(), abs=1e-6)
    assert numbers["turns_looked_at"]["backchannels"] == 8
    rows = pq.read_table(reported / "report_turns.parquet").to_pylist()
    assert Counter(row["key"] for row in rows) == {sample.key: len(sample.turns) for sample in samples}
    assert sum(row["gap"] is None for row in rows) == 8


def test_perplexity_and_use_of_codebooks(tmp_path) -> None:
    """Level 0 uses 8 entries equally, level 1 one, level 2 two with 1/4 and 3/4; level 3 all, level 4 all."""
    frames = 23 * 8
    level = np.arange(frames)
    codes = np.stack([1 + level % 8, np.full(frames, 5), np.where(level % 4, 9, 2), level % 23, (level * 7) % 23])
    turns = [Turn(0, "one", 0.0, frames / 12.5, 0, frames)]
    base = replace(made_sample(0), turns=turns, codes=codes.astype(np.uint16))
    folder = write_dataset(tmp_path / "known", [replace(base, key=f"k-{i}") for i in range(2)])
    write_report(folder)
    numbers = json.loads((folder / JSON_FILE).read_text())
    books = numbers["codebooks"]
    assert (books["frames"], books["size"]) == (2 * frames, CODEC.codebook_size)
    assert [level["used"] for level in books["levels"]] == [8, 1, 2, 23, 23]
    mixed = 4 / 3**0.75  # exp of the entropy of (1/4, 3/4)
    assert [level["perplexity"] for level in books["levels"]] == pytest.approx([8, 1, mixed, 23, 23])
    (broken,) = [check for check in numbers["checks"] if check["rule"].startswith("Every codebook")]
    assert broken["broken"] and "Levels 1, 2 " in broken["warning"]


@pytest.mark.parametrize("counted", [False, True])
def test_packing_against_the_plan_of_training(tmp_path, counted) -> None:
    """Conversations of up to 2300 positions, one with a first turn that fits into no row."""
    rng = np.random.default_rng(0)
    samples = [long_sample(i, rng.integers(2, 16, rng.integers(2, 11)) * 20) for i in range(60)]
    samples += [long_sample(60, [2100]), long_sample(61, [1500, 900])]
    folder = write_dataset(tmp_path / "long", samples, shard_bytes=40_000)
    dataset = ShardedDataset(folder)
    if counted:
        lengths = load_lengths(dataset, load_tokenizer(TokenizerConfig(kind=TokenizerKind.bytes)), None)
    else:  # 3.2 bytes for a token and 6 positions more for each turn, from the samples themselves
        order = [dataset.read(i) for i in range(len(dataset))]
        whole = [
            np.ceil(sum(len(t.text.encode()) for t in s.turns) / 3.2) + sum(t.num_frames + 6 for t in s.turns)
            for s in order
        ]
        lengths = np.stack([whole, [2100 if len(s.turns) == 1 else 1 for s in order]]).astype(np.int32)
    write_report(folder)
    packing = json.loads((folder / JSON_FILE).read_text())["packing"]
    plan = EpochPlan("made", dataset.shards("train"), lengths, 2048, window_shards=16, seed=1234)
    rows = [row for window in range(plan.windows) for row in plan.rows(0, window)]
    filled = sum(min(2048, int(lengths[0][row].sum())) for row in rows)
    assert plan.windows > 1 and len({tuple(row) for row in rows}) > 5
    assert packing["exact"] == counted
    assert (packing["windows"], packing["rows"]) == (plan.windows, len(rows))
    assert packing["efficiency"] == pytest.approx(filled / (2048 * len(rows)))
    assert (packing["left_out"], packing["positions"]) == (1, int(lengths[0].sum()))
    assert packing["shortened"] == int((lengths[0] > 2048).sum()) - 1 >= 1


def long_sample(number: int, frames: list[int]) -> Sample:
    turns, first = [], 0
    for i, count in enumerate(frames):
        turns.append(Turn(i % 2, f"turn {i}", first / 12.5, (first + count) / 12.5, first, int(count)))
        first += int(count)
    codes = np.random.default_rng(number).integers(1, 23, (5, first)).astype(np.uint16)
    return replace(made_sample(number), turns=turns, codes=codes)


def test_page_shows_every_reason_and_name(page, samples, numbers) -> None:
    text = Parsed(page).text
    assert not Parsed(page).open  # every element is closed
    for reject in rejects(samples):
        assert reject.reason in text
    for row in ledger_rows(samples):
        assert row.reason in text and row.source in text
    for name in ("häll 🎧.wav", "hum.wav", "died 3 times", "demo/urgent, turn 3", "silero", "CC-BY-SA-3.0", "mhm"):
        assert name in text
    groups = {group["reason"]: group for group in numbers["rejects"]}
    assert (groups["quality"]["turns"], groups["quality"]["recordings"]) == (8, 0)
    assert len({example["audio"] for example in groups["quality"]["examples"]}) == 3
    assert [(c["turn"], c["copies"], c["similarity"]) for c in numbers["duplicates"]["clusters"]] == [
        (3, 2, 0.875),
        (None, 1, 1.0),
    ]
    rates = {rate["stage"]: rate for rate in numbers["stages"]}
    assert (rates["encode"]["real_time"], rates["encode"]["real_time_cpu"]) == (75.0, 100.0)
    assert list(rates) == ["vad", "encode"]


def test_warnings_are_those_of_the_broken_rules(page, numbers) -> None:
    broken = [check["rule"] for check in numbers["checks"] if check["broken"]]
    # 1 of 10 recordings crashed; shows are on both sides of the split; three shows only; a quarter is
    # telephone speech; and too few rows to speak of padding.
    # 2 of 10 recordings are lost whole.
    warned = ("At most 5 % of the rec", "Training and val", "No group", "At most 20 % of the speech ends")
    for begin in (*warned, "At most 10 % of the recordings are lost whole", "At most 1 % of the texts hold markup"):
        assert any(rule.startswith(begin) for rule in broken), (begin, broken)
    fine = ("There is a val", "Every conversation has a licence", "Both sides", "Of at least 50 %")
    assert not any(rule.startswith(fine) for rule in broken)
    text = Parsed(page).text
    assert f"{len(broken)} things to look at" in text
    assert all(rule[1:] in text for rule in broken)


@pytest.mark.slow
def test_calls_that_say_everything_twice_unknown_overlap_and_markup_are_warned_of(tmp_path, samples, codec) -> None:
    """Each turn is on both channels, as of a call with crosstalk; a diarizer that finds one speaker at a time."""
    made = []
    for sample in samples[:3]:
        turns, codes = [], []
        for turn in sample.turns:
            part = sample.codes[:, turn.start_frame : turn.start_frame + turn.num_frames]
            for channel in (0, 1):
                first = sum(len(c.T) for c in codes)
                text = "<laugh> " + turn.text
                turns.append(
                    replace(
                        turn,
                        channel=channel,
                        speaker=channel,
                        text=text,
                        overlap=None,
                        start_frame=first,
                        words=[[word, turn.start + 0.2 * channel, turn.end, 0.9] for word in turn.text.split()],
                        quality=turn.quality | {"avg_logprob": -0.7, "speaker_similarity": 0.5},
                    )
                )
                codes.append(part)
        made.append(replace(sample, turns=turns, codes=np.concatenate(codes, axis=1), lang_prob=0.9))
    folder = write_report_dataset(tmp_path / "twice", made, codec)
    write_tables(folder, made)
    write_report(folder)
    numbers = json.loads((folder / JSON_FILE).read_text())
    measured = numbers["turns_looked_at"]
    assert measured["both_speak"] == pytest.approx(1.0) and measured["said_twice"] == 1.0
    assert (measured["with_markup"], measured["given_texts"], measured["langs_detected"]) == (1.0, 0.0, 1.0)
    assert "overlap" not in numbers["distributions"]  # nothing is drawn of what is not known
    broken = [check["rule"] for check in numbers["checks"] if check["broken"]]
    for begin in (
        "Both sides of a call speak",
        "Both sides of a call say",
        "Of at least 50 % of the turns it is known",
        "At most 1 % of the texts hold",
        "The median log probability of each source's recognized texts",
        "At most 5 % of the turns sound unlike",
    ):
        assert any(rule.startswith(begin) for rule in broken), (begin, broken)
    text = Parsed((folder / "report.html").read_text()).text
    assert "diarize=cluster finds one speaker at a time" in text and "en 100 %; detected" in text


def test_every_conversation_can_be_heard(page, samples, codec) -> None:
    """Players hold MP3 as long as the conversation's codes reach, and as loud as the codec decodes them."""
    players = [element["src"] for element in Parsed(page).attributes["audio"]]
    keys = re.findall(r"<h3>(demo-[^<]+)</h3>", page)
    assert len(players) == len(keys) == 8
    by_key = {sample.key: sample for sample in samples}
    for key, source in zip(keys, players, strict=True):
        head, _, data = source.partition(",")
        assert head == "data:audio/mpeg;base64"
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        sample = by_key[key]
        ends = [turn.start - sample.start + turn.num_frames / 12.5 for turn in sample.turns]
        assert len(audio) / rate == pytest.approx(max(ends), abs=0.06)
    last = sample.turns[-1]
    spoken = audio[round((last.start - sample.start) * rate) :]
    codes = sample.codes[:, last.start_frame : last.start_frame + last.num_frames].astype(np.int64)
    decoded = codec.decode(torch.from_numpy(codes)[None]).numpy()
    assert np.sqrt((spoken**2).mean()) == pytest.approx(np.sqrt((decoded**2).mean()), rel=0.2)


def test_hostile_text_stays_text(page) -> None:
    assert HOSTILE in Parsed(page).text
    assert "<script>alert" not in page and "<b>bold" not in page
    assert len(Parsed(page).attributes["script"]) == 1


def test_without_codec_and_tables(tmp_path, samples) -> None:
    """The recordings are played instead of the codes; then not even these are there."""
    folder = write_report_dataset(tmp_path / "bare", samples, codec=None)
    page = write_report(folder).read_text()
    assert "cut from the original recordings" in page and "8 of 8 were found" in page
    players = Parsed(page).attributes["audio"]
    assert len(players) == 8
    sizes = [len(base64.b64decode(player["src"].partition(",")[2])) for player in players]
    assert min(sizes) > 5_000
    description = json.loads((folder / "dataset.json").read_text())
    description["audio_root"] = str(tmp_path / "gone")
    (folder / "dataset.json").write_text(json.dumps(description))
    page = write_report(folder).read_text()
    assert "Text only" in page and "audio" not in Parsed(page).attributes
    numbers = json.loads((folder / JSON_FILE).read_text())
    assert all(numbers[name] is None for name in ("flow", "rejects", "duplicates", "stages"))
    assert all(name in page for name in ("ledger.parquet", "rejects.parquet", "duplicates.parquet", "stages.parquet"))


def test_equal_seeds_give_equal_reports(tmp_path) -> None:
    folder = made_dataset(tmp_path / "made", train=60, val=5)

    def report(seed: int) -> list[bytes]:
        write_report(folder, seed)
        return [(folder / name).read_bytes() for name in ("report.html", JSON_FILE, "report_turns.parquet")]

    first = report(1)
    assert report(1) == first
    assert report(2)[0] != first[0]  # other conversations to listen to


def test_what_was_taken_down_is_not_counted(tmp_path) -> None:
    folder = made_dataset(tmp_path / "made", train=30)
    takedown(folder, ["r3", "r5"])
    page = write_report(folder).read_text()
    assert "taken down after packing" in Parsed(page).text
    numbers = json.loads((folder / JSON_FILE).read_text())
    assert numbers["contents"]["conversations"] == 28 == numbers["turns_looked_at"]["conversations"]
    rows = pq.read_table(folder / "report_turns.parquet").to_pylist()
    assert {row["key"] for row in rows} == {f"made-{i:05d}" for i in range(30)} - {"made-00003", "made-00005"}


def test_damaged_tables_are_named(tmp_path, samples) -> None:
    folder = write_report_dataset(tmp_path / "damaged", samples[:2], codec=None)
    (folder / "ledger.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match=r"ledger\.parquet: cannot be read"):
        write_report(folder)
    with pytest.raises(FileNotFoundError, match="not a prepared dataset"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="local folders"):
        write_report("s3://bucket/data")
