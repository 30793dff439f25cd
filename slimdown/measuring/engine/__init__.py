"""The harness's language model with HFLM's answers from less work. `sharing.py` decides, `scoring.py` is the door."""
