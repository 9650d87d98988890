"""The demo's page, with Gradio: voices and a script in, speech that streams, lines to edit, files to keep."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from csm.audio import save_wav
from csm.demo.dialogue import MOST_LINES, NAMES, Dialogue, disclosure
from csm.demo.stage import Stage
from csm.demo.stream import AacStream, adts_seconds
from csm.demo.voices import LONGEST_SECONDS, Voice, read_upload
from csm.inference.generator import Generator
from csm.inference.segments import Segment

NO_VOICE, OWN_VOICE = "the model's choice", "my recording"
LONGEST_KEPT = 3600  # seconds after which a visitor's dialogue and files are deleted
EXAMPLE = "Hello, how are you today?\nFine, thank you. And you?"
TITLE = "# A dialogue in two voices"
RULES = "Do not use a voice without its owner's consent, and do not impersonate anyone."
CONSENT = "The speaker is me, or has agreed to this use of the voice"


class Visit:
    """State of one visitor: the dialogue, and a folder with the files that are played and downloaded."""

    def __init__(self, stage: Stage) -> None:
        self.dialogue = Dialogue(stage)
        self.changes = 0  # of the lines, to draw them again
        self.takes: dict[int, str] = {}  # files of spoken lines
        self._folder = tempfile.TemporaryDirectory(prefix="csm-demo-")

    def keep_take(self, number: int) -> None:
        """Writes a spoken line, under a new name for each take: browsers would play the old one."""
        self.changes += 1
        audio = self.dialogue.lines[number].audio
        if audio is not None and len(audio):
            path = Path(self._folder.name) / f"line-{number + 1}-{self.changes}.wav"
            save_wav(path, audio, self.dialogue.sample_rate)
            self.takes[number] = str(path)

    def files(self) -> list[str]:
        return [str(path) for path in self.dialogue.save(Path(self._folder.name))]

    def close(self) -> None:
        self.dialogue.stop()
        self._folder.cleanup()


def edited(visit: Visit | None, number: int, text: str) -> Visit:
    """The visit with another text in a line. Raises ValueError if it is over, and where `Dialogue.edit` does."""
    if visit is None:
        raise ValueError("This dialogue was not used for an hour and is deleted: press Speak to begin it anew.")
    visit.dialogue.edit(number, text)
    visit.takes.pop(number, None)
    return visit


def build_page(stage: Stage, voices: dict[str, Voice], script: str = EXAMPLE) -> gr.Blocks:
    """voices: given ones, by name; script: what the box holds at first."""
    rate = stage.generator.sample_rate
    notice = f"{disclosure(stage.generator.watermark.name)} Tell listeners so. {RULES}"
    with gr.Blocks(title="CSM demo", analytics_enabled=False, delete_cache=(600, LONGEST_KEPT)) as page:
        visitor = gr.State(None, time_to_live=LONGEST_KEPT, delete_callback=lambda visit: visit and visit.close())
        drawn = gr.State(0)  # `Visit.changes` of what the page shows
        gr.Markdown(f"{TITLE}\n{notice}")
        with gr.Row():
            choices = [part for speaker in range(2) for part in _voice_inputs(speaker, list(voices))]
        label = f"Script: a line for each turn, {NAMES[0]}'s first; at most {MOST_LINES}"
        lines = gr.Textbox(script, label=label, lines=5, elem_id="script")
        with gr.Accordion("Sampling", open=False):
            temperature = gr.Slider(
                0.0, 1.5, 0.9, step=0.05, label="Temperature (0: always the likeliest code)", elem_id="temperature"
            )
            topk = gr.Slider(0, 200, 50, step=1, label="Top-k (0: all codes)")
            seed = gr.Number(None, label="Seed (empty: another one each time)", precision=0, elem_id="seed")
        with gr.Row():
            speak = gr.Button("Speak", variant="primary", elem_id="speak")
            stop = gr.Button("Stop", elem_id="stop")
        player = gr.Audio(
            label="As it is spoken", streaming=True, autoplay=True, interactive=False, elem_id="player", buttons=[]
        )
        vars(player)["covert_to_adts"] = _as_adts(rate)  # Gradio's name for how it packs chunks, see csm/demo/stream.py
        status = gr.Markdown(elem_id="status")
        files = gr.File(label="Dialogue and transcript", file_count="multiple", interactive=False, elem_id="files")
        outputs, sampling = [player, visitor, drawn, status, files], [temperature, topk, seed]
        options: dict[str, Any] = {
            "concurrency_limit": len(stage.generator.engine.slots),
            "concurrency_id": "speech",
            "api_visibility": "private",
            "show_progress": "hidden",
        }

        def speak_script(visit: Visit | None, script: str, *inputs: Any) -> Iterator[dict[Any, Any]]:
            visit = visit or Visit(stage)
            with _shown_errors():
                given = [_voice(speaker, voices, stage.generator, *inputs[4 * speaker :][:4]) for speaker in range(2)]
                visit.dialogue.write(script, [segment for voice in given for segment in voice])
            visit.changes, visit.takes = visit.changes + 1, {}
            yield {visitor: visit, drawn: visit.changes, files: None}
            yield from speak_lines(visit, range(len(visit.dialogue.lines)), *inputs[8:])

        def speak_again(visit: Visit | None, text: str, number: int, *inputs: Any) -> Iterator[dict[Any, Any]]:
            with _shown_errors():
                visit = edited(visit, number, text)
            yield from speak_lines(visit, [number], *inputs)

        def speak_lines(
            visit: Visit, numbers: Iterable[int], temperature: float, topk: int, seed: int | None
        ) -> Iterator[dict[Any, Any]]:
            packer, dialogue = AacStream(rate), visit.dialogue
            for number in numbers:
                line = dialogue.lines[number]
                yield {status: f"{NAMES[line.speaker]} speaks: line {number + 1} of {len(dialogue.lines)}"}
                with _shown_errors():
                    for chunk in dialogue.speak(number, temperature, int(topk), seed):
                        if packed := packer.encode(chunk):
                            yield {player: packed}
                visit.keep_take(number)
                yield {drawn: visit.changes}
                if line.codes is None:  # stopped
                    break
                packer.encode(dialogue.pause)
            yield {player: packer.finish()}
            yield {status: _summary(dialogue), files: visit.files() or None}

        speak.click(speak_script, [visitor, lines, *choices, *sampling], outputs, **options)
        stop.click(lambda visit: visit and visit.dialogue.stop(), visitor, None, queue=False, api_visibility="private")

        @gr.render(inputs=[visitor], triggers=[drawn.change])
        def draw_lines(visit: Visit | None) -> None:
            for number, line in enumerate(visit.dialogue.lines if visit else []):
                assert visit is not None
                with gr.Row():
                    text = gr.Textbox(
                        line.text,
                        label=f"{number + 1}. {NAMES[line.speaker]}",
                        interactive=True,
                        scale=4,
                        elem_id=f"line-{number + 1}",
                    )
                    gr.Audio(
                        visit.takes.get(number),
                        label="spoken",
                        interactive=False,
                        scale=4,
                        elem_id=f"heard-{number + 1}",
                        buttons=["download"],
                    )
                    again = gr.Button("Speak again", scale=1, elem_id=f"again-{number + 1}")
                again.click(speak_again, [visitor, text, gr.State(number), *sampling], outputs, **options)

    return page


def _voice_inputs(speaker: int, given: list[str]) -> list[Any]:
    """Components of a speaker's voice: which one, a recording, its text, and the owner's consent."""
    name = NAMES[speaker]
    with gr.Column():
        choice = gr.Dropdown(
            [*given, NO_VOICE, OWN_VOICE],
            value=given[speaker % len(given)] if given else NO_VOICE,
            label=f"Voice of {name}",
            elem_id=f"voice-{name}",
        )
        with gr.Accordion(f"A recording for {name}", open=False):
            recording = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label=f"At most {LONGEST_SECONDS:.0f} s of one speaker",
                elem_id=f"recording-{name}",
            )
            text = gr.Textbox(label="What is said in it, word for word", elem_id=f"recording-text-{name}")
            consent = gr.Checkbox(label=CONSENT, elem_id=f"consent-{name}")
    return [choice, recording, text, consent]


def _voice(
    speaker: int,
    voices: dict[str, Voice],
    generator: Generator,
    choice: str,
    recording: str | None,
    text: str,
    consent: bool,
) -> list[Segment]:
    """The voice that a visitor chose. ValueError: a recording is missing, unreadable or not agreed to."""
    if choice == NO_VOICE:
        return []
    if choice != OWN_VOICE:
        return voices[choice].segments(generator, speaker)
    if recording is None:
        raise ValueError(f"Voice of {NAMES[speaker]}: upload or record one, or choose another.")
    if not consent:
        raise ValueError(f"Voice of {NAMES[speaker]}: tick that its owner agrees, or choose another.")
    return read_upload(Path(recording), text, generator.sample_rate).segments(generator, speaker)


def _summary(dialogue: Dialogue) -> str:
    """Length of what was said, and the lines that did not end by themselves."""
    notes = [
        f"line {number} {'says nothing' if not len(line.audio) else 'was cut off'}: try another seed"
        for number, line in enumerate(dialogue.lines, 1)
        if line.audio is not None and (line.finish_reason != "stop" or not len(line.audio))
    ]
    return "; ".join([f"{len(dialogue.audio()) / dialogue.sample_rate:.1f} s", *notes])


def _as_adts(rate: int) -> Callable[[bytes], Awaitable[tuple[bytes, float]]]:
    async def packed(data: bytes) -> tuple[bytes, float]:
        return data, adts_seconds(data, rate)

    return packed


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Shows a visitor's mistakes on the page; others are the program's."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
