"""Prints what the tests on a GPU measured, as a table to paste."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the machine and each check: what differs, and what was found."""
    from slimdown.commands.doctor import describe_machine
    from slimdown.report.formatting import escape_markdown

    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    rows = [value for r in reports for name, value in r.user_properties if name == "gpu check"]
    if rows:
        machine = [(heading, "–", content) for heading, content in describe_machine()]
        terminalreporter.write_line("\n| check | result | found |\n|---|---|---|")
        for row in [*machine, *rows]:
            terminalreporter.write_line(f"| {' | '.join(map(escape_markdown, row))} |")
