"""Numbers in, numbers out: estimates, the one test, looks, power. Imports nothing of ours.

Every number here has a simulation in docs/studies/statistics.md: if you change a test, run `python
-m bench.statistics` again.
"""
