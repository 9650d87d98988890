"""Turns recordings into sharded, codec-tokenized datasets: `python -m data_prep` (docs/data.md).

recordings -> plan -> units -> stages -> conversations -> shards + index -> dataset.json -> report

    sources/          what a user hands in, in any form
    planning/         `plan`: recordings, cut into units
    audio/            bytes -> samples
    records.py, tables.py, reasons.py       what flows between stages, as dataclasses and as parquet
    stages/           vad, diarize, transcribe, turns, score, encode
        backends/     models of other packages
        speech/       speakers, words and turns
        filters/      limits and duplicates
    unit/             one unit through the stages, whatever happens
    pipeline.py, fit_codec.py, executors/, run.py       `run`, `status`, `retry`: all units, here or on a cluster
    packing/          `pack`: units -> dataset
    report/           `report`: a page to look at before training
    dataset/          `index`, `verify`, `takedown`, `mix`
    processes.py      workers on this machine
    prepare.py        all in a row
    demo/             bundled recordings
"""
