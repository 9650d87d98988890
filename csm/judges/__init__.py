"""Pretrained models that listen to speech, for evaluation and data preparation.

recognition.py             interface and results of recognizers
faster_whisper.py          Whisper through CTranslate2
transformers_whisper.py    Whisper through transformers
whisper.py                 choice between the two, by the options of an evaluation
ctc.py                     CTC recognizers of letters
speaker.py                 speaker encoders
wavlm_ecapa.py             the one of seed-tts-eval's SIM, with the resampling of sinc.py
measures.py                quality, prosody and pauses of one utterance
contours.py                distance of prosody from a recording of the same words
phonemes.py                phoneme recognizers: how a word was said
dnsmos.py, silero.py       DNSMOS; voice activity
music.py                   music and singing
hub.py                     weights from a folder or a repository of the Hugging Face hub
"""
