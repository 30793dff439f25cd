"""What takes long to compute from the findings of a finished run, computed once."""

import json
from contextlib import suppress

from slimdown.config.schema import TrackingConfig
from slimdown.judging.findings import Findings
from slimdown.judging.serialization import from_plain
from slimdown.tracking.store import sqlite_file
from slimdown.utils.files import cache_dir, write_atomically
from slimdown.utils.hashing import hash_json


class FindingsCache:
    """A file beside the record, or of a server's in the user's cache; it may be deleted anytime."""

    def __init__(self, tracking: TrackingConfig) -> None:
        """Read the file; one that is damaged counts as empty."""
        file = sqlite_file(tracking.uri)
        folder = file.parent if file else cache_dir() / "findings" / hash_json(tracking.uri)
        self._path, self._is_changed = folder / "findings.cache", False
        # By a hash of run id and findings.json: the p-value of equivalence of each benchmark.
        self._known: dict[str, dict[str, float]] = {}
        with suppress(Exception):  # a damaged file raises anything
            content = json.loads(self._path.read_text())
            self._known = from_plain(dict[str, dict[str, float]], content)

    def restore(self, run_id: str, text: str) -> Findings:
        """Restore the findings of a run from findings.json, with what is known of them.

        Raises:
            ValueError, DataError: As for `Findings.from_dict`.
        """
        key = hash_json([run_id, text])
        known = self._known.get(key)
        findings = Findings.from_dict(json.loads(text), is_checked=known is not None)
        p_values = {}
        for name, change in findings.benchmarks.items():
            if known is not None:
                change.primary.difference.equivalence[change.margin] = known[name]
            p_values[name] = change.primary.difference.equivalence_p_value(change.margin)
        if known is None:
            self._known[key], self._is_changed = p_values, True
        return findings

    def save(self) -> None:
        """Write what is new; where that is not allowed, it is computed again."""
        with suppress(OSError):
            if self._is_changed:
                write_atomically(self._path, json.dumps(self._known))
