"""From inputs of any form to a plan: recordings, probed, hashed and divided into units of work.

files.py        listings of folders, globs and URLs
kinds.py        kinds of file, by suffix
pile.py         files of a source, of which each reader takes those it understands
readers/        layouts of others: Kaldi, Lhotse, NeMo, LJSpeech, a file for each speaker, ...
folders.py      audio files with their side files, in folders and tar files
pairing.py      pairs of audio and side files whose names differ
side_files.py   side files: .json, .stm, .TextGrid, .vtt, .srt, .ctm, .rttm, .txt
transcripts/    their formats: text -> turns
manifest.py     JSONL manifests, and the format of their entries
parquet.py      parquet manifests and Hugging Face audio datasets
merge.py        entries of one file put together
splits.py       splits that names of files and folders give
sources.py      recordings of a source, whichever of these forms it has
notes.py        notes on what is not used
probe.py        hashes of files, and the properties in their headers
units.py        division of recordings into units
understood.py   the account of a source, for the terminal
plan.py         the command `plan`
plan_files.py   the plan on disk: parts that never change once written
"""
