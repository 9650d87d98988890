"""Models that listen to audio, each behind a small class; weights are loaded when one is made."""
