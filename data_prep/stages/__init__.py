"""The stages between a planned recording and its codes, one module each, in this order:

vad -> diarize -> transcribe -> turns -> score -> encode

silero.py, pyannote.py and dnsmos.py are models of other packages; recognizers and speaker encoders are in csm/judges.
"""
