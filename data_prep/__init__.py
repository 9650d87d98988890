"""Data preparation, from recordings to sharded, codec-tokenized datasets: `python -m data_prep` (docs/data.md).

recordings -> plan -> units -> stages -> conversations -> shards + index -> dataset.json -> report

    inputs/           `plan`: inputs of any form -> recordings, divided into units
    audio/            bytes -> waveforms
    records.py, tables.py, reasons.py       the records passed between stages, as dataclasses and as parquet
    stages/           vad, diarize, transcribe, turns, score, encode
        speech/       speakers, words and turns, and limits on them
    execution/        `run`, `status`, `retry`: runs all units through the stages, locally or on a cluster
    packing/          `pack`: units -> dataset
    report/           `report`: a page to review before training
    dataset/          `index`, `verify`, `takedown`, `mix`
    export/           `export`: Lhotse cuts, Hugging Face datasets
    progress.py       progress in terminals and logs
    prepare.py        all of these steps in one call
    demo/             bundled recordings
"""
