"""`report`: a page to review before training, and its numbers as JSON. The entry point is report.py."""
