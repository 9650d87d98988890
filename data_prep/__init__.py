"""Turns recordings into sharded, codec-tokenized datasets: `python -m data_prep` (docs/data.md).

recordings -> plan -> units -> stages -> conversations -> shards + index -> dataset.json -> report

    inputs/           `plan`: input of any form -> recordings, cut into units
    audio/            bytes -> samples
    records.py, tables.py, reasons.py       what flows between stages, as dataclasses and as parquet
    stages/           vad, diarize, transcribe, turns, score, encode
        speech/       speakers, words and turns, and their limits
    execution/        `run`, `status`, `retry`: all units through the stages, here or on a cluster
    packing/          `pack`: units -> dataset
    report/           `report`: a page to look at before training
    dataset/          `index`, `verify`, `takedown`, `mix`
    prepare.py        all in a row
    demo/             bundled recordings
"""
