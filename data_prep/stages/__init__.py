"""Stages from a planned recording to its codes, one module each, in this order:

vad -> diarize -> transcribe -> turns -> score -> encode

silero.py, pyannote.py and dnsmos.py wrap models of other packages; recognizers and speaker encoders are in csm/judges.
"""
