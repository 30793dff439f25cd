"""Tracking servers that answer, each in its way: here they are servers of the test."""

import datetime
import ipaddress
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from slimdown.config.schema import TrackingConfig
from slimdown.tracking.connection import check_store, open_store
from slimdown.tracking.read import find_runs
from slimdown.tracking.write import TrackedRun
from slimdown.utils.errors import SlimdownError


class Refusing(BaseHTTPRequestHandler):
    """A server that wants another password."""

    def do_GET(self) -> None:
        self.send_error(401)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[TrackingConfig]:
    """The settings of a store that such a server keeps, by TLS where there is a certificate."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield TrackingConfig(
            uri=f"http{'s' if certificate else ''}://me:wrong@127.0.0.1:{server.server_port}",
            experiment="x",
        )
        server.shutdown()
        thread.join()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that no authority has signed, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.parametrize(
    "setting",
    ["MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"],
)
def test_a_certificate_that_mlflow_is_told_to_trust_is_trusted(
    setting: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting, "true" if setting.endswith("TLS") else str(certificate))
    with serving(certificate) as config:
        check_store(config)


def test_a_certificate_that_nobody_trusts_is_refused_with_the_cure(certificate: Path) -> None:
    with (
        serving(certificate) as config,
        pytest.raises(
            SlimdownError,
            match=r"CERTIFICATE_VERIFY_FAILED.*; name .*MLFLOW_TRACKING_SERVER_CERT_PATH=FILE$",
        ),
    ):
        check_store(config)


def test_a_server_that_refuses_is_not_to_be_started() -> None:
    with (
        serving() as config,
        pytest.raises(SlimdownError, match=r"401.*; check user, password and address$"),
    ):
        open_store(config)


def test_a_slow_import_is_not_taken_for_silence_of_the_server() -> None:
    script = (
        "import sys\n"
        "from slimdown.tracking import connection\n"
        "from slimdown.config.schema import TrackingConfig\n"
        "imported = []\n"
        "connection.within = lambda seconds, call: imported.append('mlflow' in sys.modules)\n"
        "connection.open_store(TrackingConfig(uri='http://127.0.0.1:9', experiment='x'))\n"
        "assert imported == [False, True], imported\n"  # asked whether it answers, then opened
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_local_store_is_that_of_the_folder_one_is_in(
    migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow keeps one store a URI, and a process may change its folder: a notebook, or these tests."""
    for name in ("one", "other"):
        folder = tmp_path / name
        (folder / "mlruns").mkdir(parents=True)
        (folder / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
        monkeypatch.chdir(folder)
        config = TrackingConfig("sqlite:///mlruns/mlflow.db", "slimdown")
        assert find_runs(config) == []
        with TrackedRun(config, name, "tuned", {}):
            pass
        assert [run.name for run in find_runs(config)] == [name]
