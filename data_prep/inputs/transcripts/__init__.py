"""Formats of transcripts: text of a file -> turns. Each raises ValueError saying what is wrong, and knows no files.

nist.py        RTTM, STM, CTM
subtitles.py   SRT, WebVTT
textgrid.py    Praat TextGrid
elan.py        ELAN's .eaf
chat.py        CHAT's .cha (CHILDES, CallHome); chat_text.py: what its lines say
lines.py       HTK's .lab, sclite's .trn
labels.py      .txt: a plain text, Audacity labels, lines with times; times.py: the times that mark a line
json_text.py   JSON of our own, Whisper, whisperX, Deepgram, moshi-finetune, Seamless, Emilia, lists of segments
words.py       words with times -> turns
"""
