"""Where recordings come from: `read_source` lists what a user hands in, whatever its form.

files.py        folders, globs and URLs -> names
folder.py       audio files with their side files, in folders and tar files
tars.py         members of tar files, by offset
manifest.py     JSONL manifests, and the format of a recording's entry
table.py        parquet manifests, Hugging Face audio datasets
annotations.py  side files: .txt, .rttm, .stm, .json
listing.py      all of the above by what `input` names
"""

from data_prep.sources.listing import Listed, read_source

__all__ = ["Listed", "read_source"]
