"""`pack`: the units of a finished run -> a dataset folder.

assemble.py     all of it
conversation.py turns -> conversations
ledger.py       what became of every millisecond
staging.py      conversations set down on disk
pack.py         -> shuffled shards
output.py       the output folder: all or nothing
"""
