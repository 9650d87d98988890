"""What a turn must be like, and what repeats what.

text_checks.py  repetition, hallucination, speech rate
limits.py       limits on measures, loose and strict
fingerprint.py  of sound
dedup.py        duplicates of a whole set
"""
