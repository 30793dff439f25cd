"""Nothing is lost and nothing leaks: errors a person can mend, signals, full disks, secrets.

The bottom room: it imports no other.
"""
