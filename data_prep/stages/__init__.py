"""The stages between a planned recording and its codes, one module each, in this order:

vad -> diarize -> transcribe -> turns -> score -> encode
"""
