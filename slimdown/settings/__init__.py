"""What can be set, what each setting means, and every check on it, before torch is loaded."""
