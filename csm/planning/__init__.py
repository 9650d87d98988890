"""`csm plan`: memory, time and storage of a training run, before it is started."""
