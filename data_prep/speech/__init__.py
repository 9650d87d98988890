"""Who says which words: what the stages `vad` to `turns` are made of, besides models.

given.py        annotated turns, checked against the audio
spans.py        stretches of time
clustering.py   embeddings of voices -> speakers
words.py        words -> speakers, and times that agree with the sound
grouping.py     words -> turns
edges.py        where a turn begins and ends
"""
