"""Listening tests: comparison mean opinion scores (CMOS) of two systems, as Sesame describes its own.

items.py       items of a report: `evaluate.py listening items`
kit.py         items, levels, catch trials and who hears what: `evaluate.py listening export`
page.html.j2   the page that raters open from disk
results.py     answers to means with intervals, tests and agreement: `evaluate.py listening import`
command.py     the commands
"""
