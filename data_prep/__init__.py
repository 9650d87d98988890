"""Turns recordings with transcripts into sharded, codec-tokenized datasets: `python -m data_prep`.

recordings -> turns -> codes -> conversations -> shards + index -> dataset.json

    manifest.py      what the user gives: recordings and their annotated turns
    cut.py           recording -> one waveform for each turn
    encode.py        waveforms -> codes
    conversation.py  turns -> conversations (samples)
    pack.py          samples -> shuffled tar shards
    index.py         shards -> index.parquet and dataset.json
    output.py        the output folder: all or nothing
    prepare.py       all of the above in a row
    verify.py        re-reads a finished dataset
    rejects.py       what was left out, and why
    demo/            bundled recordings
"""
