"""A conversation of several turns: two voices given by recordings, each turn spoken with all earlier ones as context.

    python examples/conversation.py MODEL --prompt-a a.wav "What a said." --prompt-b b.wav "What b said." \
        --say "Hey, how are you doing?" --say "Pretty good, pretty good." --out conversation.wav

MODEL is anything that csm.load_generator reads: an exported directory, a training checkpoint, or a hub id such as
sesame/csm-1b. Without prompts the model chooses the voices; a base model chooses other ones every time.
"""

from __future__ import annotations

import argparse

import torch

from csm import Conversation, GeneratedSegment, Segment, load_generator
from csm.audio import check_wav_name, load_audio, save_wav
from csm.errors import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt-a", nargs=2, metavar=("AUDIO", "TEXT"), help="the voice of speaker 0")
    parser.add_argument("--prompt-b", nargs=2, metavar=("AUDIO", "TEXT"), help="the voice of speaker 1")
    parser.add_argument("--say", action="append", required=True, help="next turn; speakers 0 and 1 alternate")
    parser.add_argument("--max-seconds", type=float, default=10.0, help="longest turn")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--codec", help="local Mimi weights, for a model that does not carry its codec")
    parser.add_argument("--out", default="conversation.wav")
    arguments = parser.parse_args()
    with user_errors():
        speak(arguments)


def speak(arguments: argparse.Namespace) -> None:
    check_wav_name(arguments.out)
    generator = load_generator(arguments.model, arguments.device, codec_path=arguments.codec)
    prompts = [
        Segment(speaker, text=prompt[1], audio=load_audio(prompt[0], generator.sample_rate))
        for speaker, prompt in enumerate((arguments.prompt_a, arguments.prompt_b))
        if prompt is not None
    ]
    # Prompts stay. Turns that were spoken are kept as the codes that the model produced; the oldest ones are dropped
    # when there is no more room.
    conversation = Conversation(
        generator, prompts, max_audio_length_ms=1000 * arguments.max_seconds, temperature=arguments.temperature
    )
    turns: list[GeneratedSegment] = []
    for number, text in enumerate(arguments.say):
        result = conversation.say(text, speaker=number % 2)
        turns.append(result)
        print(f"speaker {number % 2}: {text}   {result.frames / generator.codec.frame_rate:.1f} s")
    audio = generator.watermark.embed(torch.cat([turn.audio for turn in turns]), generator.sample_rate)
    save_wav(arguments.out, audio, generator.sample_rate)
    print(arguments.out)


if __name__ == "__main__":
    main()
