"""Pretrained models that listen to speech: recognizers and speaker encoders, for evaluation and data preparation.

recognition.py             interface and results of recognizers
faster_whisper.py          Whisper through CTranslate2
transformers_whisper.py    Whisper through transformers
whisper.py                 choice between the two, by the options of an evaluation
speaker.py                 speaker encoders
hub.py                     weights from a folder or a repository of the Hugging Face hub
"""
