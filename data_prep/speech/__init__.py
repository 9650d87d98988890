"""Words, speakers and turns: the parts of the stages, besides models.

clustering.py   embeddings of voices -> speakers
words.py        words -> speakers, and times that agree with the sound; given turns, checked against the audio
grouping.py     words -> turns
edges.py        where a turn begins and ends
limits.py       limits on measures of turns, loose and strict
text_checks.py  repetition, hallucination, speech rate
fingerprint.py  of sound
"""
