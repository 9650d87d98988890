"""Readers of the layouts in which others keep speech: from the files of a source to recordings with turns.

A reader takes from the pile the files that have its shape, and yields a recording for each of them (or several entries
for one file, which inputs/merge.py puts together). Where nothing has its shape it takes and yields nothing.

    kaldi.py          wav.scp, segments, text, utt2spk
    shar.py           Lhotse Shar: cuts.*.jsonl.gz with tar files
    lhotse.py         Lhotse recordings, supervisions and cuts
    rows.py           tables and JSON lines, a row for each segment: NeMo, Emilia, Common Voice, audiofolder, spans
    ljspeech.py       metadata.csv of LJSpeech
    vctk.py           txt/p225/p225_001.txt for wav48/p225/p225_001.wav
    libri.py          LibriSpeech and LibriTTS
    moshi.py          data.jsonl of moshi-finetune
    speaker_files.py  a file for each speaker of a conversation: Seamless Interaction, TurnBench, Open Yap, otoSpeech
    saved.py          `save_to_disk` of Hugging Face datasets
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.inputs.readers import kaldi, lhotse, libri, ljspeech, moshi, rows, saved, shar, speaker_files, vctk
from data_prep.records import Rejection

Reader = Callable[[Pile], Iterator[Entry | Rejection]]

READERS: dict[str, Reader] = {
    "kaldi": kaldi.read,
    "shar": shar.read,
    "lhotse": lhotse.read,
    **{layout: rows.reader(layout) for layout in rows.LAYOUTS},
    "moshi": moshi.read,
    "ljspeech": ljspeech.read,
    "vctk": vctk.read,
    "librispeech": libri.read_librispeech,
    "libritts": libri.read_libritts,
    "speakers": speaker_files.read,
    "saved": saved.read,
}
"""Value of the option `format` -> reader, in the order in which they look at the files."""


def is_own_manifest(pile: Pile, name: str) -> bool:
    """Whether a .jsonl file is a manifest of our own (or a damaged one), and not one that a reader knows."""
    return not (rows.layout_of(pile, name) or lhotse.is_manifest(pile, name) or moshi.is_list(pile, name))
