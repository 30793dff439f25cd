"""`slimdown doctor` shows what is here, and ends with 1 where the record cannot be opened."""

from pathlib import Path

from record_builders import Capture

from slimdown.commands import doctor
from slimdown.config.engines import list_engines


def test_a_machine_is_described_without_a_network(tmp_path: Path, capsys: Capture) -> None:
    assert doctor.main(["--tracking-uri", f"sqlite:///{tmp_path}/new.db"]) == 0
    out = capsys.readouterr().out
    for expected in ("transformers 5", "GiB free", "model.dtype=", "new.db can be opened"):
        assert expected in out
    assert "cannot be reached" in out
    assert ".[ray]" in out or "cluster: installed" in out
    for setting, facts in list_engines():
        is_listed = f".[{facts.extra}]" in out or f"{setting}: installed" in out
        assert is_listed is bool(facts.extra)
    (tmp_path / "rows.db").write_text("no database")
    assert doctor.main(["--tracking-uri", f"sqlite:///{tmp_path}/rows.db"]) == 1
    assert "rows.db" in capsys.readouterr().out


def test_a_record_that_cannot_be_written_is_named(tmp_path: Path, capsys: Capture) -> None:
    assert doctor.main(["--tracking-uri", "sqlite:////proc/new/mlflow.db"]) == 1
    assert "/proc/new" in capsys.readouterr().out
    assert doctor.main(["--tracking-uri", f"sqlite:///{tmp_path}/a/b/new.db"]) == 0
    assert not list(tmp_path.iterdir())
