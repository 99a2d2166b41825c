"""What a run found, as numbers and sentences: report.json, the answer to "did the models get better?", the status.

`xlr.report` shows it as a page, as Markdown and on the terminal.
"""
