"""Findings into what a person reads: console, Markdown, pages and plots."""
