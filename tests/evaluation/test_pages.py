"""Pages as a browser shows them: spectrograms, tables that sort, the index of reports."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from csm.config import AsrKind, EvalConfig, EvaluateConfig, SpeakerKind
from csm.evaluation.embedded import IMAGE_BYTES, Room
from csm.evaluation.index import main as index
from csm.evaluation.run import evaluate
from csm.programs import evaluate as program


def test_spectrogram_shows_what_is_where(tmp_path):
    """Half a second of a low tone, then of a high one, then silence."""
    times = np.arange(12_000) / 24_000
    tones = [0.3 * np.sin(2 * np.pi * hertz * times) for hertz in (300, 6000)]
    soundfile.write(tmp_path / "a.wav", np.concatenate([*tones, 0 * times]).astype(np.float32), 24_000)
    uri = Room(tmp_path).spectrogram("a.wav")
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    gray = np.asarray(picture.convert("L"), dtype=int)
    assert gray.shape == (40, 150) and len(uri) < 8000
    low, high, silent = gray[:, 5:45], gray[:, 55:95], gray[:, 105:145]
    assert silent.min() == 255
    assert low.mean(axis=1).argmin() > 30 and high.mean(axis=1).argmin() < 12  # rows from the top
    assert low.min() < 80 and high.min() < 120


def test_spectrograms_and_audio_end_where_the_room_does(tmp_path):
    noise = torch.randn(48_000, generator=torch.Generator().manual_seed(0)).numpy()
    soundfile.write(tmp_path / "a.wav", 0.1 * noise, 24_000)
    room, total = Room(tmp_path), 0
    while (uri := room.spectrogram("a.wav")) is not None:
        total += len(uri)
    assert IMAGE_BYTES <= total < IMAGE_BYTES + 8000
    soundfile.write(tmp_path / "short.wav", noise[:100], 24_000)
    assert Room(tmp_path).spectrogram("short.wav") is None


@pytest.fixture(scope="module")
def reports(checkpoint, tmp_path_factory):
    """The reports of two suites beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"bootstrap_samples": 50, "intrinsic_split": "train", "asr": AsrKind.faster_whisper}
    options |= {
        "asr_model": "no-such-folder",
        "speaker_model": "no-such-folder",
        "speaker_model_kind": SpeakerKind.wavlm_ecapa,
        "split": "train",
    }
    for name, suite in (("turns", "turns"), ("intrinsic", "intrinsic")):
        settings = EvalConfig(name, suite=suite, max_prompts=3, max_audio_seconds=0.8, **options)
        evaluate(EvaluateConfig(str(checkpoint), output=str(folder / f"eval-{name}"), eval=settings))
    return folder


@pytest.mark.slow
def test_index_links_the_reports_and_tables_sort_in_a_browser(reports, tmp_path, monkeypatch):
    from playwright.sync_api import sync_playwright

    monkeypatch.setattr("sys.argv", ["evaluate.py", "index", str(reports)])
    program()
    requests: list[str] = []
    errors: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--mute-audio"])
        page = browser.new_context(offline=True, viewport={"width": 1300, "height": 1000}).new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((reports / "index.html").as_uri())
        assert page.locator("tbody tr").count() == 2
        assert "teacher-forced loss, nats" in page.text_content("tbody")
        page.screenshot(path=str(tmp_path / "index.png"))
        page.click("th a[href='eval-turns/report.html']")
        page.wait_for_selector("#items tbody tr")
        assert page.locator("img.spectrogram").count() == 6  # recordings and the model's turns
        assert page.evaluate("Array.from(document.images).every(image => image.naturalWidth > 0)")
        page.click("summary:has-text('By codebook')")
        table = page.locator("details:has-text('By codebook') table")
        table.locator("button.sort").nth(1).click()
        losses = [float(text.split()[0]) for text in table.locator("tbody td:nth-child(2)").all_text_contents()]
        assert losses == sorted(losses) and len(losses) == 5
        table.locator("button.sort").nth(1).click()
        again = [float(text.split()[0]) for text in table.locator("tbody td:nth-child(2)").all_text_contents()]
        assert again == losses[::-1]
        page.screenshot(path=str(tmp_path / "report.png"), full_page=True)
        browser.close()
    assert errors == [] and all(url.startswith(("file:", "data:")) for url in requests)


def test_folders_without_reports_are_refused_and_other_files_left_out(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/results.json").write_text(json.dumps([1]))
    with pytest.raises(FileNotFoundError, match="no evaluation report of this version is in it or below it"):
        index([str(tmp_path)])


@pytest.mark.slow
def test_index_escapes_names(reports, tmp_path):
    shutil.copytree(reports / "eval-intrinsic", tmp_path / "a b#")
    path = tmp_path / "a b#/results.json"
    path.write_text(path.read_text().replace('"title": "Evaluation of', '"title": "<script>alert(1)</script>', 1))
    index([str(tmp_path)])
    html = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in html and re.search(r'href="a%20b%23/report\.html"', html)
