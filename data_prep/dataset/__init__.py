"""Finished datasets: their index, verification, takedowns and mixtures.

shard.py        reads and checks a shard
index.py        shards -> index.parquet and dataset.json
verify.py       reads a dataset in full and checks it
takedown.py     removes recordings from the index
rebuild.py      rebuilds index and dataset.json from the shards
mix.py          several datasets -> a mixture for training
"""
