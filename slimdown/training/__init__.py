"""A base and rows into a tuned model, or one that was tuned elsewhere. The only room that knows TRL.

Door: `tuning`, which refuses before the base is measured what cannot be. Training seeds for itself, so that nothing
measured before changes what it does (`tests/test_train.py`, byte for byte).
"""
