"""examples/speak.html in a browser against a running server: plays without gaps of its own making, stops on click."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROOT
from tests.serving.served import running, service_of, wait_for

CHROMIUM = "/usr/bin/chromium"

# What the page asks of the audio clock: (when, duration, the clock at that moment, loudest sample) of each chunk.
WATCH = """
window.started = []; window.ended = 0;
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
  const samples = this.buffer.getChannelData(0);
  window.started.push([when, this.buffer.duration, this.context.currentTime, Math.max(...samples.map(Math.abs))]);
  window.clock = this.context;
  this.addEventListener("ended", () => window.ended++);
  return start.call(this, when);
};
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def site() -> Iterator[str]:
    """Address of the examples, served as files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=ROOT / "examples")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_the_page_plays_on_the_audio_clock_and_stops_on_click(tmp_path):
    from playwright.sync_api import sync_playwright

    with site() as origin, sync_playwright() as driver:
        service = service_of(tmp_path, allowed_origins=(origin,), local_only=True)
        with running(service) as server:
            options = ["--no-sandbox", "--autoplay-policy=user-gesture-required"]
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page()
            page.set_default_timeout(120_000)
            failures = []
            page.on("pageerror", lambda error: failures.append(str(error)))
            page.add_init_script(WATCH)
            page.goto(f"{origin}/speak.html?server={server}")

            page.locator("#text").fill("Hello.")
            page.locator("#speak").click()
            page.wait_for_function("() => document.getElementById('status').value.startsWith('done')")
            started, ended = page.evaluate("[window.started, window.ended]")
            gaps = check_schedule(started)
            seconds = sum(duration for _, duration, _, _ in started)
            assert page.locator("#status").text_content() == f"done, {seconds:.2f} s, {gaps} gaps"
            assert len(started) > 3 and seconds > 1 and ended == len(started)
            assert page.evaluate("window.clock.currentTime") >= started[-1][0] + started[-1][1] - 0.05
            assert max(loudest for *_, loudest in started) > 0.1

            # A long text is stopped in the middle: no sound is left, and the server's slot is free again.
            page.evaluate("window.started = []")
            page.locator("#text").fill("x" * 100)
            page.locator("#speak").click()
            page.wait_for_function("() => window.started.length > 2 && window.clock.currentTime > window.started[0][0]")
            page.locator("#stop").click()
            assert page.evaluate("window.clock.state") == "closed"
            wait_for(lambda: service.live == 0)
            count = page.evaluate("window.started.length")
            page.wait_for_timeout(500)
            assert page.evaluate("window.started.length") == count
            assert page.locator("#status").text_content() == "stopped" and not failures
            check_schedule(page.evaluate("window.started"))

            # What the server refuses is said.
            page.locator("#text").fill(" ")
            page.locator("#speak").click()
            page.wait_for_function("() => document.getElementById('status').value.includes('input')")
            browser.close()


def check_schedule(started: list[list[float]]) -> int:
    """No chunk begins in the past or over the one before, and one after it only where there was none in time. Returns
    the number of these gaps."""
    gaps = 0
    for number, (when, _, now, _) in enumerate(started):
        assert when >= now, (number, started)
        if number:
            end = started[number - 1][0] + started[number - 1][1]
            assert when > end - 1e-6
            if when > end + 1e-6:
                assert end < now + 0.02 + 1e-6, (number, started)
                gaps += 1
    return gaps
