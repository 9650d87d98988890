"""`export`: a prepared dataset in the forms of other toolkits.

originals.py     the original audio of conversations
lhotse.py        Lhotse cuts
hugging_face.py  parquet files with audio, as the package `datasets` loads them
"""
