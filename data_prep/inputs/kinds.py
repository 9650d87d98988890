"""Kinds of file, by suffix: audio that is read, files that are refused by name, and names for the rest."""

from __future__ import annotations

from pathlib import PurePosixPath

# fmt: off
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".g722", ".aiff", ".aif", ".webm", ".w64",
    ".caf", ".au", ".wma", ".amr", ".mka", ".mp4", ".sph", ".nist", ".m4b", ".mkv", ".mov", ".avi", ".ts", ".m4v",
    ".3gp", ".3g2", ".wv", ".mp2", ".mpga", ".voc", ".gsm", ".ac3", ".eac3", ".tta", ".rf64", ".snd", ".ape", ".spx",
    ".mpg", ".mpeg", ".flv", ".wve", ".ircam", ".sf",
)
# fmt: on

CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".3gp")
"""Containers that may hold several audio streams."""

HEADERLESS = (".raw", ".pcm", ".al", ".ul", ".alaw", ".ulaw", ".vox")
"""Audio without a header: its rate, channels and encoding are known to nobody but the user."""
_LIKELY = {".al": "alaw", ".alaw": "alaw", ".ul": "mulaw", ".ulaw": "mulaw"}
"""Encoding that a suffix means, as FFmpeg calls it; for the others a common one stands in the hint."""

ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tbz2", ".txz")

_NAMES = {
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet table",
    ".arrow": "Arrow table",
    ".tar": "tar file",
    ".jsonl": "JSON lines",
    ".json": "JSON",
    ".scp": "Kaldi list",
    ".trs": "Transcriber annotation, export it as STM",
    ".docx": "document",
    ".pdf": "document",
    ".md": "document",
    ".html": "document",
    ".npz": "array",
    ".npy": "array",
}


def is_audio(name: str) -> bool:
    return suffix_of(name) in AUDIO_SUFFIXES


def suffix_of(name: str) -> str:
    """The suffix in lower case: ".wav"; of a compressed file both: ".jsonl.gz"."""
    suffix = _last(name)
    if suffix in ARCHIVES:
        before = _last(name[: -len(suffix)])
        return before + suffix if before in (".jsonl", ".json", ".tar", ".csv", ".tsv") else suffix
    return suffix


def _last(name: str) -> str:
    """`PurePosixPath(name).suffix` in lower case, at a tenth of its time: it is asked for of millions of files."""
    stem, _, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and suffix else ""


def is_archive(name: str) -> bool:
    """Whether a file must be unpacked before anything in it can be read."""
    suffix = suffix_of(name)
    return suffix.endswith(ARCHIVES) and not suffix.startswith((".json", ".csv", ".tsv"))


def unpack_hint(name: str) -> str:
    """The way out of an archive, as a sentence."""
    if suffix_of(name) == ".zip":
        return f"{name}: unpack it first: unzip {name} -d FOLDER, then input=FOLDER"
    if suffix_of(name).startswith((".tar", ".tgz", ".tbz", ".txz")):
        return f"{name}: unpack it first: tar -xf {name} -C FOLDER; only uncompressed .tar files are read in place"
    return f"{name}: unpack it first"


def headerless_hint(name: str) -> str:
    """The way out of headerless audio, as a sentence."""
    path = PurePosixPath(name)
    encoding = _LIKELY.get(path.suffix.lower())
    told = "rate and channels" if encoding else "encoding, rate and channels"
    return (
        f"{name}: audio without a header, which does not tell its {told}; convert it first with the right ones, such "
        f"as: ffmpeg -f {encoding or 's16le'} -ar 8000 -ac 1 -i {path.name} {path.stem}.wav"
    )


def kind_of(name: str) -> str:
    """The kind of a file that is set aside, in words: ".csv (table)"."""
    suffix = suffix_of(name)
    known = "archive, unpack it" if is_archive(name) else _NAMES.get(suffix)
    return f"{suffix or 'without suffix'}{f' ({known})' if known else ''}"
