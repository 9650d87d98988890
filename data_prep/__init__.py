"""Turns recordings into sharded, codec-tokenized datasets: `python -m data_prep` (docs/data.md).

recordings -> plan -> units -> stages -> conversations -> shards + index -> dataset.json -> report

    sources/          what a user hands in, in any form
    probe.py, plan.py, units.py, plan_files.py      `plan`: recordings, cut into units
    storage.py, decode.py, audio.py                 bytes -> samples
    records.py, tables.py, reasons.py               what flows between stages, as dataclasses and as parquet
    stages/           vad, diarize, transcribe, turns, score, encode; what they need beside them:
        backends/         models of other packages
        clustering.py, words.py, grouping.py, edges.py, spans.py, given.py      speakers, words and turns
        text_checks.py, limits.py, fingerprint.py                               measures and their limits
    unit.py, stage_files.py, attempts.py, failures.py       one unit through the stages, whatever happens
    pipeline.py, fit_codec.py, executors/, run.py           `run`, `status`, `retry`: all units, here or on a cluster
    assemble.py       `pack`: units -> dataset, by way of
        dedup.py, ledger.py, conversation.py, staging.py, pack.py, shard.py, index.py, processes.py, output.py
    report*.py        `report`: a page to look at before training
    verify.py, takedown.py, tombstones.py, mix.py           what else is done to finished datasets
    prepare.py        all in a row
    demo/             bundled recordings
"""
