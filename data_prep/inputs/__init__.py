"""Input of any form -> a plan: recordings, probed, hashed and cut into units of work.

files.py        folders, globs and URLs -> names
folders.py      audio files with their side files, in folders and tar files
side_files.py   side files: .txt, .rttm, .stm, .json
manifest.py     JSONL manifests, and the format of a recording's entry
parquet.py      parquet manifests, Hugging Face audio datasets
sources.py      all of the above by what `input` names -> recordings
probe.py        what a file says of itself, and its hash
units.py        recordings -> units
plan.py         all of it; plan_files.py: the plan on disk, which never changes once written
"""
