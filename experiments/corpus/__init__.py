"""An open corpus of spoken conversations that anyone makes again offline: python -m experiments.corpus --help

grammar.py             templates, slots, word classes       numbers.py     numbers and times as words
desk.txt, open.txt     the grammars                         levels.py      levels by name
plan.py                which conversations, in which set    voices.py      voices of packages and programs
render.py              sound, file by file                  records.py     manifests, corpus.json
command.py             the command line
"""
