"""`pack`: writes a dataset folder from the units of a finished run.

pack.py         the command
dedup.py        duplicates in the whole set
conversation.py turns -> conversations
ledger.py       the outcome of every millisecond of audio
staging.py      conversations on disk, not yet shuffled
shards.py       staged conversations -> shuffled shards
output.py       the output folder, written atomically
"""
