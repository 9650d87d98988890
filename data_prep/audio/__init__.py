"""The sound of recordings, wherever their bytes lie.

storage.py      a file, a URL, a stretch of a tar, a cell of a parquet file -> bytes
decode.py       bytes -> blocks of samples
recording.py    random access to tracks, at any rate
"""
