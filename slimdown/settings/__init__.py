"""What can be set, what each setting means, and every check on it, before torch is loaded.

Doors: `commandline.check_command_line`, `load.load_config`. A setting is a field of `schema.py` with its range beside
it; a check that needs a model stands in `training/checks.py`.
"""
