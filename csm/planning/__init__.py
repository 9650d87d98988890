"""`csm plan`: what a training run needs, before it is started: memory, time, storage."""
