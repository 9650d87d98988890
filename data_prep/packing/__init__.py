"""`pack`: the units of a finished run -> a dataset folder.

pack.py         all of it
dedup.py        duplicates of a whole set
conversation.py turns -> conversations
ledger.py       what became of every millisecond
staging.py      conversations set down on disk
shards.py       -> shuffled shards
output.py       the output folder: all or nothing
"""
