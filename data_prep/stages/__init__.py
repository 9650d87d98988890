"""Stages from a planned recording to its codes, one module each, in this order:

vad -> diarize -> transcribe -> turns -> score -> encode

diarizers.py, pyannote.py and sortformer.py hold the diarizers; the other models that stages use are in csm/judges.
"""
