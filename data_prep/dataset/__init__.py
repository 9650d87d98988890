"""Finished datasets: their index, and what else is done to them.

shard.py        what a shard holds
index.py        shards -> index.parquet and dataset.json
verify.py       re-reads everything
takedown.py     removes recordings from the index
rebuild.py      index and dataset.json, made again from the shards
mix.py          several datasets -> a mixture for training
"""
