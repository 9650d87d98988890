"""The page in a browser: a dialogue is typed, heard and fetched, a line is edited and spoken again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BytesIO
from urllib.parse import urlsplit

import pytest
import soundfile
import torch

from csm.codec import SpectralCodec
from csm.config import CSMConfig, TokenizerConfig, TokenizerKind, TransformerConfig
from csm.demo.command import launch
from csm.demo.stage import Stage
from csm.inference.generator import Generator
from csm.model.csm import CSM
from csm.text import load_tokenizer
from tests.codec.conftest import make_babble

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The page of a model with random weights, which says something until a guard ends it."""
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
    stage = Stage(Generator(CSM(config), codec, tokenizer, slots=1))
    page = launch(stage, {}, tmp_path_factory.mktemp("visitors"), "127.0.0.1", None, block=False)
    yield page.local_url
    page.close()


@pytest.mark.slow
def test_a_dialogue_is_typed_heard_fetched_and_changed(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        hosts = set()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(address)
        page.get_by_text("This speech is synthetic: no human said it. It carries no watermark.").wait_for()

        for _ in range(8):  # what is typed and clicked before the page's scripts have run is lost
            page.locator("#script textarea").fill("")
            page.locator("#speak").click()
            page.wait_for_timeout(3_000)
            if refused := page.get_by_text("The script is empty").count():
                break
        assert refused

        page.locator("#script textarea").fill("Hello.\nYes?")
        page.get_by_text("Sampling").click()
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
        browser.close()


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
