"""From inputs of any form to a plan: recordings, probed, hashed and divided into units of work.

files.py        listings of folders, globs and URLs
folders.py      audio files with their side files, in folders and tar files
side_files.py   side files: .txt, .rttm, .stm, .json
manifest.py     JSONL manifests, and the format of their entries
parquet.py      parquet manifests and Hugging Face audio datasets
sources.py      recordings of a source, whichever of these forms it has
probe.py        hashes of files, and the properties in their headers
units.py        division of recordings into units
plan.py         the command `plan`
plan_files.py   the plan on disk, which never changes once written
"""
