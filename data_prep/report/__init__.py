"""A page to look at before training, and every number of it. Starts at report.py."""
