"""The written report, from hand-made results."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
import torch

from csm.audio import save_wav
from csm.evaluation.prompts import EvalPrompt
from csm.evaluation.report import PublishedView, Report
from csm.evaluation.scores import score_system
from csm.evaluation.text_norm import Rate
from csm.evaluation.utterances import Flag, System, Utterance
from csm.evaluation.wer import align_words, count_errors
from csm.evaluation.writer import write_report
from csm.inference.generator import Segment

HOSTILE = "</div><script>alert(1)</script>|\"'><img src=x onerror=alert(2)> & `code` [a](b)"
TONE = 0.3 * torch.sin(torch.arange(12_000) * 0.05)


class Page(HTMLParser):
    """Tags and text of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def utterance(system: System, hypothesis: str, **fields) -> Utterance:
    alignment = align_words("please hold the line", hypothesis)
    return Utterance(
        **{
            "prompt": "call/1",
            "system": system,
            "seed": 3 if system is System.model else None,
            "cluster": "call",
            "speaker": 0,
            "text": "Please hold the line.",
            "seconds": len(TONE) / 24_000,
            "audio_file": f"audio/{system.name}.wav",
            "context_turns": 1 if system is System.model else None,
            "hypothesis": hypothesis,
            "alignment": alignment,
            "errors": count_errors(alignment),
            **fields,
        }
    )


SPEAKING = (System.ground_truth, System.codec_resynthesis, System.model)
METRICS = ("wer_corpus", "wer_mean", "wer_sound", "cosine_recording", "cosine_earlier", "failed")


def make_report(
    utterances: list[Utterance], unavailable: dict[str, str] | None = None, rate: Rate = "WER", **prompt
) -> Report:
    scores = []
    for system in System:
        mine = [u for u in utterances if u.system is system]
        options = {"unavailable": unavailable, "bootstrap_samples": 100}
        missing = "original recordings not found (a.wav)"
        scores.append(score_system(system, mine, 1, METRICS, missing=missing, **options))
    return Report(
        title=f"Evaluation of {HOSTILE}",
        subtitle="a test",
        suite="turns",
        scoring="errors over words",
        prompts=[
            EvalPrompt(**{"id": "call/1", "text": "Please hold the line.", "speaker": 0, "cluster": "call", **prompt})
        ],
        utterances=utterances,
        scores=scores,
        scores_by_seed={},
        embedder="tiny-embedder",
        recognizer="tiny-recognizer",
        rate=rate,
        notes=[HOSTILE],
        published=[PublishedView(HOSTILE, {"wer_corpus": "2.1"}, "a table", "no: another recognizer")],
        protocol={"statistics": {"cluster": "calls"}},
        protocol_hash="abc",
        provenance={"checkpoint": {"path": HOSTILE, "codec": {"name": "spectral"}}},
        timings={"finished": "today"},
    )


def write(report: Report, folder: Path) -> tuple[Page, str, dict]:
    (folder / "audio").mkdir()
    for file in {u.audio_file for u in report.utterances if u.audio_file}:
        save_wav(folder / file, TONE, 24_000)
    write_report(report, folder)
    html = (folder / "report.html").read_text()
    return Page(html), (folder / "report.md").read_text(), json.loads((folder / "results.json").read_text())


def test_hostile_text_stays_text(tmp_path):
    turns = [
        utterance(System.ground_truth, "please hold the line", text=HOSTILE),
        utterance(System.model, f"please {HOSTILE}", text=HOSTILE),
    ]
    report = make_report(turns, text=HOSTILE, id=HOSTILE, context=[Segment(1, HOSTILE)])
    for turn in turns:
        turn.prompt = HOSTILE
    page, markdown, results = write(report, tmp_path)
    assert len(page.all("script")) == 2  # the page's own
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("alert(1)") >= 5
    assert "<script" not in markdown and "<img" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and "alert" in line]
    assert len(rows) == 2 and all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)  # no new table cells
    assert results["notes"] == [HOSTILE]


def test_page_is_self_contained_and_plays_every_utterance(tmp_path):
    page, _, _ = write(make_report([utterance(system, "please hold the line") for system in SPEAKING]), tmp_path)
    sources = [attributes["src"] for attributes in page.all("audio")]
    assert len(sources) == 3
    for source in sources:
        assert source.startswith("data:audio/mpeg;base64,")
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert rate == 24_000 and abs(len(audio) - len(TONE)) < 2_400
    assert page.all("link") == [] and not any("src" in attributes for attributes in page.all("script"))
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src")]
    assert all(link.startswith("data:") for link in links)
    assert "http" not in (tmp_path / "report.html").read_text()


def test_transcripts_show_what_was_missed_and_what_was_heard_instead(tmp_path):
    write(make_report([utterance(System.model, "please fold the line now")]), tmp_path)
    html = (tmp_path / "report.html").read_text()
    transcript = re.search(r'<div class="transcript">(.*?)</div>', html).group(1)
    assert transcript == "please <del>hold</del> <ins>fold</ins> the line <ins>now</ins> "


def test_system_that_could_not_run_keeps_its_row_and_its_reason(tmp_path):
    page, markdown, results = write(make_report([utterance(System.model, "please hold")]), tmp_path)
    for system in ("ground_truth", "codec_resynthesis", "control"):
        row = results["systems"][system]
        assert (row["expected"], row["scored"]) == (1, 0)
        assert row["metrics"]["wer_corpus"] == {"not_run": "original recordings not found (a.wav)"}
    assert results["systems"]["model"]["metrics"]["wer_corpus"]["value"] == 0.5
    assert "not run: original recordings not found (a.wav)" in page.text
    assert re.search(r"^\| Ground truth \| not run: original recordings not found", markdown, re.MULTILINE)


def test_missing_judges_leave_not_run_in_every_format(tmp_path):
    turns = [utterance(system, "", alignment=None, errors=None) for system in SPEAKING]
    unavailable = {"recognizer": "Whisper is not here", "embedder": "no embedder"}
    page, markdown, results = write(make_report(turns, unavailable), tmp_path)
    for system in SPEAKING:
        metrics = results["systems"][system.name]["metrics"]
        assert metrics["wer_corpus"] == metrics["wer_mean"] == {"not_run": "Whisper is not here"}
        assert metrics["cosine_earlier"] == {"not_run": "no embedder"}
    assert results["systems"]["model"]["scored"] == 1
    assert page.text.count("not run: Whisper is not here") == 9
    assert markdown.count("not run: Whisper is not here") == 9
    assert len(page.all("audio")) == 3


def test_error_rates_of_characters_are_called_so_everywhere(tmp_path):
    page, markdown, results = write(make_report([utterance(System.model, "please fold")], rate="CER"), tmp_path)
    assert "WER" not in page.text + markdown and "CER, corpus" in page.text and "| Heard | CER |" in markdown
    assert "all errors / all characters" in page.text and results["error_rate"] == "CER"
    assert results["metrics"]["wer_mean"]["title"] == "CER, mean"


def test_failures_are_counted_and_scored(tmp_path):
    turns = [utterance(System.model, "", seconds=0.0, audio_file=None, flags=[Flag.empty])]
    page, markdown, results = write(make_report(turns), tmp_path)
    model = results["systems"]["model"]
    assert {name: n for name, n in model["failures"].items() if n} == {"empty": 1}
    assert model["metrics"]["wer_corpus"]["value"] == model["metrics"]["failed"]["value"] == 1.0
    assert model["metrics"]["wer_sound"] == {"not_run": "every utterance failed"}
    assert "1 with empty output" in page.text and "1 with empty output" in markdown
    row = json.loads((tmp_path / "utterances.jsonl").read_text())
    assert (row["flags"], row["audio"], row["wer"]) == (["empty"], None, 1.0)


def test_cosines_are_averaged_where_they_exist_and_name_their_embedder(tmp_path):
    turns = [
        utterance(System.ground_truth, "please hold the line", cosine_earlier=0.9),
        utterance(System.model, "please hold the line", cosine_recording=0.75, cosine_earlier=0.5),
    ]
    page, _, results = write(make_report(turns), tmp_path)
    model, truth = results["systems"]["model"]["metrics"], results["systems"]["ground_truth"]["metrics"]
    assert (model["cosine_recording"]["value"], model["cosine_earlier"]["value"]) == (0.75, 0.5)
    assert truth["cosine_earlier"]["value"] == pytest.approx(0.9)
    assert truth["cosine_recording"] == {"not_run": "the recording would be compared with itself"}
    assert "Speaker cosine (tiny-embedder)" in page.text


def test_report_of_a_thousand_prompts_stays_small_and_lists_them_all(tmp_path):
    """Cards with players for the failed, the worst and some at random; the table of items has every one."""
    prompts = [EvalPrompt(f"call/{n}", "Please hold the line.", 0, f"call{n}") for n in range(1000)]
    turns = [
        utterance(system, "please hold the line", prompt=prompt.id, cluster=prompt.cluster, audio_file="audio/a.wav")
        for prompt in prompts
        for system in SPEAKING
    ]
    turns[3 * 500 + 2].flags = [Flag.runaway]
    report = make_report(turns)
    report.prompts = prompts
    page, markdown, _ = write(report, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    cards = [attributes for name, attributes in page.tags if name == "article"]
    assert 26 <= len(cards) <= 52
    assert [card["data-failed"] for card in cards].count("1") == 1
    items = json.loads(re.search(r"var items = (\[.*?\]), body", (tmp_path / "report.html").read_text()).group(1))
    assert [item[0] for item in items] == [prompt.id for prompt in prompts]
    assert re.search(r"^\| call/500 \|.*no end of speech", markdown, re.MULTILINE)
