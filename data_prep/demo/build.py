"""Builds the bundled demo recordings; kept as a record of how they were made.

    python -m data_prep.demo.build SOUNDS_DIR

SOUNDS_DIR holds the `*.g722` prompts of the Debian package `asterisk-core-sounds-en-g722` (voice of Allison Smith);
the caller's lines are spoken by the program `flite` (voice `rms`). Each dialogue below becomes one 16 kHz mono FLAC
file and one line of `manifest.jsonl`, both written next to this script. Silence around every line is trimmed and the
lines are set 0.3 s apart; the recorded prompts are otherwise unchanged.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from csm.audio import load_channels

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 16_000
GAP_SECONDS = 0.3
MARGIN_SECONDS = 0.05  # silence left on each side of a line
SYSTEM, CALLER = 0, 1

# A dialogue is a list of lines. A pair (prompt, text) is the phone system's, a plain string the caller's.
Line = str | tuple[str, str]
TRAIN: dict[str, list[Line]] = {
    "leave-message": [
        "Can I leave a message?",
        ("vm-whichbox", "To leave a message, please enter a mailbox number."),
        "It is for Anna.",
        ("vm-rec-name", "After the tone say your name and then press the pound key."),
    ],
    "urgent": [
        "Can you mark it urgent?",
        ("vm-marked-urgent", "Message marked urgent."),
        "No, it can wait.",
        ("vm-marked-nonurgent", "Urgent status removed."),
    ],
    "nobody": [
        "Is anybody there?",
        ("vm-nobodyavail", "Nobody is available to take your call at the moment."),
        "Then who sent me this?",
        ("vm-nonumber", "I'm afraid I don't know who sent this message."),
    ],
    "directory": [
        "Find Mister Brown for me.",
        ("dir-nomatch", "No directory entries match your search."),
        "Show me the other names.",
        ("dir-nomore", "There are no more compatible entries in the directory."),
    ],
    "join": [
        "Join me to the meeting.",
        ("conf-placeintoconf", "You will now be placed into the conference."),
        "Hello, who is here?",
        ("conf-onlyperson", "You are currently the only person in this conference."),
    ],
    "attending": [
        "Who is attending today?",
        ("conf-roll-callcomplete", "Playback of the list of people attending is complete."),
        "And where is the boss?",
        ("conf-leaderhasleft", "The leader has left the conference."),
    ],
    "echo": [
        "Let me try the echo test.",
        ("demo-echodone", "The echo test has been completed."),
        "That was fun, bye bye.",
        ("demo-thanks", "Goodbye. Thank you for trying out the Asterisk Open Source PBX."),
    ],
    "speed-dial": [
        "Dial my first contact.",
        ("speed-dial-empty", "The speed dial entry you've accessed is empty."),
        "Use call forwarding then.",
        ("feature-not-avail-line", "That feature is not available on this line."),
    ],
    "not-completed": [
        "Call my office, please.",
        ("cannot-complete-as-dialed", "Your call cannot be completed as dialed."),
        "What should I do now?",
        ("check-number-dial-again", "Please check the number and dial again."),
    ],
    "introduce": [
        "Let me talk to Sarah.",
        ("priv-recordintro", "At the tone, please say your name."),
        "My name is Peter.",
        ("priv-introsaved", "Thank you. Please hold, while I attempt to connect you with your party!"),
    ],
    "monkeys": [
        "So what went wrong?",
        ("something-terribly-wrong", "Something is terribly wrong!"),
        "Where are the engineers?",
        ("tt-monkeysintro", "They have been carried away by monkeys."),
    ],
    "weasels": [
        "Why is it so noisy?",
        ("tt-weasels", "Weasels have eaten our phone system."),
        "Is there another line?",
        ("all-circuits-busy-now", "All circuits are busy now."),
    ],
    "password": [
        "Here is my password.",
        ("auth-incorrect", "Password incorrect. Please enter your password followed by the pound key."),
    ],
    "parking": ["Park this call for me.", ("pbx-parkingfailed", "Parking attempt failed.")],
    "extension": ["Extension forty, please.", ("transfer", "Please hold while I try that extension.")],
    "help": ["How do I get help?", ("vm-helpexit", "Press star for help or pound to exit.")],
    "limit": ["Add one more caller.", ("simul-call-limit-reached", "Simultaneous call limit reached.")],
    "option": ["I choose the last one.", ("pm-invalid-option", "That option is invalid. Please try again.")],
    "folder": ["Move this message.", ("vm-changeto", "Change to which folder?"), "The one for work."],
    "forward": [
        "Send it to my brother.",
        ("vm-msgforwarded", "Your message has been successfully forwarded."),
        "Great, thank you.",
    ],
    "welcome": ["I need a phone number.", ("dir-welcome", "Welcome to the directory."), "The front desk."],
    "sorry": [
        "Bananas and cream.",
        ("vm-sorry", "I'm sorry I did not understand your response."),
        "Never mind, then.",
    ],
}
VAL: dict[str, list[Line]] = {
    "recorded": [
        "Is this call private?",
        ("conf-now-recording", "The conference is now being recorded."),
        "When do we begin?",
        ("conf-waitforleader", "The conference will begin when the leader arrives."),
    ],
    "log-in": [
        "I would like to log in.",
        ("agent-pass", "Please enter your password followed by the pound key."),
        "Use the new one.",
        ("vm-passchanged", "Your passwords have been changed."),
    ],
    "no-service": [
        "I dialed the right number.",
        (
            "ss-noservice",
            "The number you have dialed is not in service. Please check the number and try again.",
        ),
    ],
}


def trim(audio: np.ndarray) -> np.ndarray:
    """Cuts silence (10 ms windows 40 dB below the loudest one) from both ends of `audio` [N], keeping the margin."""
    window = SAMPLE_RATE // 100
    windows = audio[: len(audio) // window * window].reshape(-1, window)
    energy = (windows**2).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 1e-4)
    margin = round(MARGIN_SECONDS * SAMPLE_RATE)
    return audio[max(0, loud[0] * window - margin) : (loud[-1] + 1) * window + margin]


def rms(audio: np.ndarray) -> float:
    return float(np.sqrt((audio**2).mean()))


def read_16k(path: Path) -> np.ndarray:
    channels, rate = load_channels(path)
    if rate != SAMPLE_RATE:
        raise ValueError(f"{path}: expected {SAMPLE_RATE} Hz, found {rate}")
    return channels.mean(dim=0).numpy()


def synthesize(text: str) -> np.ndarray:
    """The caller's voice: `text` spoken by flite -> float32 [N] at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line.wav"
        subprocess.run(
            ["flite", "-voice", "rms", "--setf", "duration_stretch=0.8", "-t", text, "-o", str(path)], check=True
        )
        return read_16k(path)


def build(sounds: Path) -> None:
    dialogues = [("train", name, lines) for name, lines in TRAIN.items()]
    dialogues += [("val", name, lines) for name, lines in VAL.items()]
    voiced: list[list[np.ndarray]] = []
    for _, _, lines in dialogues:
        voiced.append([trim(synthesize(x) if isinstance(x, str) else read_16k(sounds / f"{x[0]}.g722")) for x in lines])
    # The synthetic voice is set to the level of the recorded one.
    lines_in_order = [line for _, _, lines in dialogues for line in lines]
    audio_in_order = [audio for audios in voiced for audio in audios]
    pairs = list(zip(lines_in_order, audio_in_order, strict=True))
    system_level = rms(np.concatenate([audio for line, audio in pairs if not isinstance(line, str)]))
    caller_level = rms(np.concatenate([audio for line, audio in pairs if isinstance(line, str)]))

    gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE), dtype=np.float32)
    rows = []
    seconds = {("train", SYSTEM): 0.0, ("train", CALLER): 0.0, ("val", SYSTEM): 0.0, ("val", CALLER): 0.0}
    for (split, name, lines), audios in zip(dialogues, voiced, strict=True):
        pieces: list[np.ndarray] = []
        turns: list[dict[str, object]] = []
        position = 0
        for line, audio in zip(lines, audios, strict=True):
            speaker, text = (CALLER, line) if isinstance(line, str) else (SYSTEM, line[1])
            if pieces:
                pieces.append(gap)
                position += len(gap)
            pieces.append(audio * (system_level / caller_level) if speaker == CALLER else audio)
            start, end = position / SAMPLE_RATE, (position + len(audio)) / SAMPLE_RATE
            turns.append({"speaker": speaker, "text": text, "start": round(start, 6), "end": round(end, 6)})
            position += len(audio)
            seconds[split, speaker] += end - start
        soundfile.write(HERE / f"{name}.flac", np.concatenate(pieces), SAMPLE_RATE, subtype="PCM_16")
        rows.append({"id": name, "audio": f"{name}.flac", "split": split, "turns": turns})
    (HERE / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for (split, speaker), total in seconds.items():
        print(f"{split} {'system' if speaker == SYSTEM else 'caller'}: {total:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Builds the bundled demo recordings.")
    parser.add_argument("sounds", type=Path, help="folder with the *.g722 prompts")
    build(parser.parse_args().sounds)
