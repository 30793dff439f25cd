"""One file for each mitigation of forgetting; `config/mitigation.py` finds them by their names."""
