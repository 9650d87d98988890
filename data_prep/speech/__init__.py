"""Words, speakers and turns: the parts of stages that are not models.

clustering.py   speakers from embeddings of voices
crosstalk.py    the sides of a call, and where one hears the other
words.py        speakers of words, and word times that agree with the speech; checks of given turns
grouping.py     grouping of words into turns
edges.py        start and end times of turns
limits.py       limits on measures of turns, loose and strict
text_checks.py  repetition, hallucination, speech rate
fingerprint.py  acoustic fingerprints
"""
