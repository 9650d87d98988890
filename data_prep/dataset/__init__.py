"""Finished datasets: their index, and what else is done to them.

shard.py        what a shard holds
index.py        shards -> index.parquet and dataset.json
verify.py       re-reads everything
takedown.py     removes recordings from the index; tombstones.py: what was removed
mix.py          several datasets -> a mixture for training
"""
