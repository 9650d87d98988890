"""Pretrained models that listen to speech, for evaluation and data preparation.

recognition.py             interface and results of recognizers
faster_whisper.py          Whisper through CTranslate2
transformers_whisper.py    Whisper through transformers
whisper.py                 choice between the two, by the options of an evaluation
ctc.py                     CTC recognizers of letters and phonemes
speaker.py                 speaker encoders
wavlm_ecapa.py             the one of seed-tts-eval's SIM, with the resampling of sinc.py
measures.py                quality, prosody and pauses of one utterance
dnsmos.py, silero.py       DNSMOS; voice activity
hub.py                     weights from a folder or a repository of the Hugging Face hub
"""
