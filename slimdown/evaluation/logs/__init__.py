"""Reads other tools' evaluation logs. Imports no torch, and none of them but Inspect's reader."""
