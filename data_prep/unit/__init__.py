"""One unit through the stages, whatever happens on the way.

run_unit.py     the stages in order, each recording tried in isolation
stage_files.py  what a stage leaves
attempts.py     how often work on a recording was begun and not ended
failures.py     what an exception means
"""
