"""Pretrained models that listen to speech: recognizers and speaker encoders, for evaluation and data preparation.

recognition.py             what a recognizer does, and what it finds
faster_whisper.py          Whisper through CTranslate2
transformers_whisper.py    Whisper through transformers
whisper.py                 chooses between them by options
speaker.py                 speaker encoders
hub.py                     weights: a folder, or a repository of the Hugging Face hub
"""
