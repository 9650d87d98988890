"""Two tests of pronunciation that Sesame described and did not release, with sentences of our own.

homograph.jsonl     5 words x 2 senses x 20 sentences, senses labelled by hand
consistency.jsonl   10 words x 10 pairs of a context sentence and a target sentence, each for 2 variants of the word
items.py            reads them
variants.py         the variants of each word in the recognizer's phonemes
scorers.py          which variant was said: greedy phoneme match, and forced choice
summary.py          accuracy, chance and agreement

The recognizers are those of csm/judges/phonemes.py. They were trained on labels of programs that pick the wrong
pronunciation of such words often enough: a row of human speech belongs beside every result, and thresholds are
calibrated on it (`scorers.calibrate`). The suites homograph and consistency (csm/evaluation/suites/pronunciation.py)
have models speak the sentences, csm/evaluation/pronunciation.py scores them.
"""
