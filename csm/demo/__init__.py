"""A demo in the browser: two speakers, a script, speech that streams.

dialogue.py    one visitor's dialogue: voices, lines, what was said; nothing of the page
stage.py       the generator that all visitors share
voices.py      voices given in a folder, and those that visitors bring
stream.py      chunks of speech as AAC for the page's player
page.py        the page, with Gradio
command.py     csm demo
"""
