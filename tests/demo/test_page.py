"""The page in a browser: a dialogue is typed, heard and fetched, a line is edited and spoken again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import soundfile
import torch

from csm.codec import SpectralCodec
from csm.config import AsrKind, CSMConfig, TokenizerConfig, TokenizerKind, TransformerConfig
from csm.demo.command import launch
from csm.demo.stage import Stage
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import align_words, corpus_wer, count_errors
from csm.formats.load import load_generator
from csm.inference.generator import Generator
from csm.judges.whisper import load_recognizer
from csm.model.csm import CSM
from csm.text import load_tokenizer
from csm.watermark.base import THRESHOLD
from tests.codec.conftest import make_babble

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"
MODEL = os.environ.get("CSM_DEMO_MODEL")
"""Directory of the quickstart's model, which knows a few lines: what it says of them on the page is transcribed."""
LINES = ["Message marked urgent.", "No, it can wait.", "Urgent status removed."]


@pytest.fixture(scope="module")
def stage() -> Stage:
    """A model with random weights, which says something until a guard ends it."""
    torch.manual_seed(7)
    codec = SpectralCodec.fit([make_babble(48_000, seed=1)], num_codebooks=5, codebook_size=23)
    config = CSMConfig(
        backbone=TransformerConfig(layers=2, dim=48, heads=4, kv_heads=2, ffn_dim=80),
        decoder=TransformerConfig(layers=1, dim=24, heads=3, kv_heads=1, ffn_dim=40),
        text_vocab_size=258,
        codebook_size=23,
        num_codebooks=5,
        max_seq_len=1024,
    )
    tokenizer = load_tokenizer(TokenizerConfig(kind=TokenizerKind.bytes, vocab_size=258))
    return Stage(Generator(CSM(config), codec, tokenizer, slots=1))


@pytest.fixture(scope="module")
def address(stage, tmp_path_factory) -> Iterator[str]:
    page = launch(stage, {}, tmp_path_factory.mktemp("visitors"), "127.0.0.1", None, block=False)
    yield page.local_url
    page.close()


@contextmanager
def opened(address: str) -> Iterator[tuple[Page, set[str | None]]]:
    """The page in a browser, when it hears what is typed and clicked, and the hosts that it asks."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        hosts = set()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(address)
        for _ in range(8):  # what is typed and clicked before the page's scripts have run is lost
            page.locator("#script textarea").fill("")
            page.locator("#speak").click()
            page.wait_for_timeout(3_000)
            if refused := page.get_by_text("The script is empty").count():
                break
        assert refused
        page.get_by_text("Sampling").click()
        yield page, hosts
        browser.close()


@pytest.mark.slow
def test_a_dialogue_is_typed_heard_fetched_and_changed(address):
    with opened(address) as (page, hosts):
        page.get_by_text("This speech is synthetic: no human said it. It carries no watermark.").wait_for()
        page.locator("#script textarea").fill("Hello.\nYes?")
        page.locator("#seed input").fill("3")
        page.locator("#speak").click()
        page.wait_for_function("() => (document.querySelector('#player audio')?.currentTime ?? 0) > 0.1")
        names = fetched_with(page, "B: Yes?")
        audio, rate = soundfile.read(BytesIO(names["dialogue.wav"]))
        assert rate == 24_000 and len(audio) > rate and abs(audio).max() > 0.01
        head, _, first, second = names["dialogue.txt"].decode().splitlines()
        assert "no watermark" in head and first.endswith("A: Hello.") and second.endswith("B: Yes?")
        assert float(second.split()[2]) == pytest.approx(len(audio) / rate, abs=0.02)

        page.locator("#line-2 textarea").fill("No, not at all!")
        page.locator("#again-2").click()
        again = fetched_with(page, "No, not at all!")
        assert again["dialogue.wav"] != names["dialogue.wav"]
        first_again = again["dialogue.txt"].decode().splitlines()[2]
        assert first_again == first  # the first line stays as it was said
        assert hosts == {"127.0.0.1"}  # nothing comes from elsewhere: fonts, scripts, analytics


@pytest.mark.slow
@pytest.mark.skipif(MODEL is None, reason="CSM_DEMO_MODEL names no model")
def test_what_is_fetched_is_what_was_typed(tmp_path):
    generator = load_generator(str(MODEL), "cpu", slots=1)
    shown = launch(Stage(generator), {}, tmp_path, "127.0.0.1", None, block=False)
    with opened(shown.local_url) as (page, _):
        page.locator("#script textarea").fill("\n".join(LINES))
        page.locator("#temperature input[type=number]").fill("0")
        page.locator("#speak").click()
        content = fetched_with(page, LINES[-1])["dialogue.wav"]
    shown.close()
    audio, rate = soundfile.read(BytesIO(content), dtype="float32")
    heard = load_recognizer(AsrKind.faster_whisper, None, "en", "cpu").transcribe(torch.from_numpy(audio), rate)
    normalize = load_normalizer("en")
    assert corpus_wer([count_errors(align_words(normalize(" ".join(LINES)), normalize(heard)))]) <= 0.15
    assert generator.watermark.detect(torch.from_numpy(audio), rate) > THRESHOLD


def test_a_line_of_a_deleted_dialogue_asks_to_begin_anew(stage):
    from csm.demo.page import Visit, edited  # after `launch`, which tells Gradio where to keep files

    visit = Visit(stage)
    visit.dialogue.write("One.\nTwo.")
    assert edited(visit, 1, "Three.") is visit
    assert visit.dialogue.lines[1].text == "Three."
    with pytest.raises(ValueError, match="not used for an hour and is deleted: press Speak"):
        edited(None, 1, "Three.")
    visit.close()


def fetched_with(page, text: str) -> dict[str, bytes]:
    """The files once the transcript holds `text`. Each is fetched again then: the page may have changed between two."""
    deadline = time.monotonic() + 120
    while text not in fetched(page)["dialogue.txt"].decode():
        assert time.monotonic() < deadline
        page.wait_for_timeout(500)
    return fetched(page)


def fetched(page) -> dict[str, bytes]:
    """The files that the page offers, by name."""
    page.locator("#files a[download]").nth(1).wait_for()
    links = [
        (link.get_attribute("download"), link.get_attribute("href"))
        for link in page.locator("#files a[download]").all()
    ]
    return {name: page.request.get(href).body() for name, href in links}
