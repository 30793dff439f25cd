"""Logs of evaluations that other tools made -> `Evaluation`. Imports no torch, nor those tools."""
