"""Findings into what a person reads: console, Markdown, pages and plots.

Doors: `console.show_findings`, `files.files_of`, `table.write`. A sentence stands in `words.py` alone, a format's ways
in `table.py`, a page's looks in `pages/`; whatever a model or a name says is escaped.
"""
