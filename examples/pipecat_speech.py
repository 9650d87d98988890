"""Speech of `csm serve` in a Pipecat pipeline, through Pipecat's OpenAI service.

    csm serve MODEL --name gpt-4o-mini-tts --voice alloy=0
    pip install pipecat-ai          # in an environment of its own
    python examples/pipecat_speech.py "All circuits are busy now." out.wav

The last processor here writes a WAV file; in a voice agent a transport's output takes its place.
"""

from __future__ import annotations

import asyncio
import sys
import wave

from pipecat.frames.frames import EndFrame, ErrorFrame, Frame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner


class Recorder(FrameProcessor):
    """Keeps the sound of the frames that pass; one behind the speech service, one before it for its errors."""

    def __init__(self) -> None:
        super().__init__()
        self.sound: list[TTSAudioRawFrame] = []
        self.errors: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.sound.append(frame)
        if isinstance(frame, ErrorFrame):
            self.errors.append(frame.error)
        await self.push_frame(frame, direction)


async def speak(text: str, path: str, server: str = "http://127.0.0.1:8000/v1") -> None:
    settings = OpenAITTSService.Settings(model="gpt-4o-mini-tts", voice="alloy")
    speech = OpenAITTSService(api_key="none", base_url=server, settings=settings)
    before, behind = Recorder(), Recorder()
    worker = PipelineWorker(Pipeline([before, speech, behind]))
    await worker.queue_frames([TTSSpeakFrame(text), EndFrame()])
    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()
    if before.errors or not behind.sound:
        raise SystemExit(f"no speech: {'; '.join(before.errors) or 'the service gave no audio'}")
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(behind.sound[0].sample_rate)
        file.writeframes(b"".join(frame.audio for frame in behind.sound))
    rate, size = behind.sound[0].sample_rate, sum(len(frame.audio) for frame in behind.sound)
    print(f"{path}: {size / 2 / rate:.2f} s at {rate} Hz in {len(behind.sound)} frames")


if __name__ == "__main__":
    asyncio.run(speak(*sys.argv[1:]))
