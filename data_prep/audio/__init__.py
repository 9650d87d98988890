"""Audio of recordings, wherever it is stored.

storage.py      bytes of a file, a URL, a tar member, or a cell of a parquet file
decode.py       decoding to blocks of samples
stretches.py    stretches of long files, which are decoded once
made.py         several files, or streams, as the channels of one; stretches of a file
recording.py    random access to tracks, at any sample rate
"""
