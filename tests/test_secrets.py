"""Passwords and tokens planted wherever a user could put one, and looked for in everything that is written or shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from mlflow import MlflowClient
from omegaconf import OmegaConf

from slimdown.config.commandline import check_command_line
from slimdown.config.files import CONF_DIR
from slimdown.utils.errors import ConfigError
from slimdown.utils.hiding import HideInSweep, without_secrets
from slimdown.utils.redaction import public_uri, redact

PLANTED = "pl4nted"  # begins every secret here


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{PLANTED}@db/mlflow",
        rf"tracking.uri=postgresql\://me\:{PLANTED}@db/mlflow",
        f'tracking.uri="postgresql://me:{PLANTED}@db/mlflow"',
        f"postgresql+psycopg://me:a@{PLANTED}@db/mlflow",
        f"postgresql://me:a/{PLANTED}@db/mlflow",
        f"postgresql://me:a?{PLANTED}@db/mlflow",
        f"postgresql://db/mlflow?user=me&password={PLANTED}&sslmode=require",
        rf"postgresql\://db/mlflow\?user\=me&password\={PLANTED}",
        f"postgresql://db/mlflow?sslmode=verify-full&sslpassword={PLANTED}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BUID%3Dme%3BPWD%3D{PLANTED}",
        f"postgresql%3A%2F%2Fme%3A{PLANTED}%40db%2Fmlflow",
        f"https://{PLANTED}@github.com/me/rows",
        f"https://data/rows.jsonl?X-Amz-Signature={PLANTED}&X-Amz-Expires=60",
        f"{{'path': 'https://me:{PLANTED}@data/rows'}}",
        f"could not connect to 'http://me:{PLANTED}@server:5000': refused",
        f"HF_TOKEN={PLANTED}",
        f'{{"api_key": "{PLANTED}", "r": 8}}',
        f"password: '{PLANTED} {PLANTED}'",
        f"a token that looks like one, hf_{PLANTED}abcdefghijklmnopqrst",
    ],
)
def test_a_secret_is_blanked_in_any_text(text: str) -> None:
    assert PLANTED not in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "lora.r=8 benchmark.gsm8k.limit=200",
        "sqlite:////srv/me@lab/mlflow.db",
        "https://huggingface.co/datasets/me/rows@main",
        "http://localhost:5000/#/experiments/1?compare=true",
        "evaluation:\n  token_budget: 4096\n",
        "tokens per second: 5, 0.091 nats a token in 376 steps",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert redact(text) == public_uri(text) == text


def test_an_address_keeps_what_tells_where_it_points() -> None:
    assert public_uri("https://user:word@host:5000/x") == "https://***@host:5000/x"
    assert (
        public_uri("postgresql://me:pw@db/a?connect_timeout=3")
        == "postgresql://***@db/a?connect_timeout=3"
    )


def test_what_the_environment_holds_is_known_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{PLANTED}1")
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"postgresql://me:{PLANTED}%3A2@db/mlflow?sslpassword={PLANTED}3"
    )
    said = redact(
        f"401 for {PLANTED}1, authentication failed: {PLANTED}:2 ({PLANTED}%3A2), key {PLANTED}3"
    )
    assert PLANTED not in said


@pytest.mark.parametrize(
    ("argument", "becomes"),
    [
        (
            f"tracking.uri=postgresql://me:{PLANTED}@db/x",
            "tracking.uri=${oc.env:SLIMDOWN_TRACKING_URI}",
        ),
        (
            f'tracking.uri="postgresql://db/x?password={PLANTED} 2"',
            "tracking.uri=${oc.env:SLIMDOWN_TRACKING_URI}",
        ),
        (
            f"+hydra.job.env_set.HF_TOKEN={PLANTED}",
            "+hydra.job.env_set.HF_TOKEN=${oc.env:SLIMDOWN_HYDRA_JOB_ENV_SET_HF_TOKEN}",
        ),
        ("lora.r=8,16", "lora.r=8,16"),
        ("--config-dir=mine", "--config-dir=mine"),
        ("tracking.uri=${oc.env:MY_STORE}", "tracking.uri=${oc.env:MY_STORE}"),
    ],
)
def test_hydra_sees_a_reference_in_a_secrets_place(
    argument: str, becomes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert without_secrets([argument]) == [becomes]


def test_a_sweep_over_secrets_and_a_section_with_one_compose_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    uris = [f"http://me:{PLANTED}{i}@server" for i in range(2)]
    path = f"https://me:{PLANTED}@data/rows"
    given = [f"tracking.uri={','.join(uris)}", f"dataset.pocket_instructions={{path: '{path}'}}"]
    hidden = without_secrets(given)
    assert PLANTED not in str(hidden)
    [jobs] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(hidden), None)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        made = [compose("config", overrides=list(job)) for job in jobs]
    assert [config.tracking.uri for config in made] == uris
    assert {config.dataset.pocket_instructions.path for config in made} == {path}


def test_hydra_is_told_to_blank_before_a_sweep_is_saved() -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("config", return_hydra_config=True)
    assert get_class(config.hydra.callbacks.secrets._target_) is HideInSweep


def test_what_a_config_file_brought_is_blanked_before_a_sweep_is_saved() -> None:
    config = OmegaConf.create(
        {
            "tracking": {"uri": f"http://me:{PLANTED}@server"},
            "many": [f"https://{PLANTED}@data"],
            "hydra": {},
            "n": 1,
        }
    )
    HideInSweep().on_multirun_start(config)
    assert config == {
        "tracking": {"uri": "http://***@server"},
        "many": ["https://***@data"],
        "hydra": {},
        "n": 1,
    }


def test_what_a_config_file_sets_in_the_environment_of_jobs_is_blanked_by_name() -> None:
    kept = {"A_TOKEN": "${oc.env:HOME}", "OMP_NUM_THREADS": "1"}
    secret = {"MLFLOW_TRACKING_PASSWORD": PLANTED, "STORE": f"http://me:{PLANTED}@server"}
    config = OmegaConf.create(
        {"hydra": {"job": {"env_set": kept | secret}, "sweep": {"dir": "${now:%Y}"}}}
    )
    OmegaConf.set_readonly(config.hydra, True)
    HideInSweep().on_multirun_start(config)
    hidden = {"MLFLOW_TRACKING_PASSWORD": "***", "STORE": "http://***@server"}
    assert OmegaConf.to_container(config, resolve=False) == {
        "hydra": {"job": {"env_set": kept | hidden}, "sweep": {"dir": "${now:%Y}"}}
    }


def test_a_long_setting_that_cannot_be_read_is_cut_after_its_secret_is_blanked() -> None:
    with pytest.raises(ConfigError) as refused:
        check_command_line(
            [f"tracking.uri=[postgresql://someone:{PLANTED}{'0' * 60}@server/mlflow"]
        )
    assert "is not setting=value" in str(refused.value)
    assert PLANTED not in redact(str(refused.value))


def test_no_secret_is_found_in_what_a_sweep_leaves(store: MlflowClient, tmp_path: Path) -> None:
    """Everything at once: escaped, in a parameter, in the environment, in a file; finished runs and one that fails."""
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "planted.yaml").write_text(
        f"# @package _global_\ndataset:\n  pocket_replay:\n    template: '{{instruction}} http://me:{PLANTED}-file@x'\n"
    )
    environment = {**os.environ, "HF_TOKEN": f"{PLANTED}-environment"}
    command = [
        "slimdown.run", "-m", "--config-dir", "mine", "experiment=planted", *SMALL, "train.max_steps=1",
        "dataset=[pocket_instructions,pocket_replay]", "dataset.pocket_replay.max_examples=16",
        rf"dataset.pocket_instructions.template=https\://me\:{PLANTED}-escaped@data/\{{instruction\}},"
        f"'{{instruction}} https://data/c?user=me&password={PLANTED}-parameter'",
        f"+hydra.job.env_set.MY_API_KEY={PLANTED}-set",
    ]  # fmt: skip
    shown = []
    failing = [
        "slimdown.run",
        "-m",
        f"tracking.uri=http://me:{PLANTED}@127.0.0.1:9/a,postgresql://x:{PLANTED}@",
    ]
    unparsed = [
        "slimdown.run",
        f"tracking.uri=postgresql://127.0.0.1:9/x?user=me&password={PLANTED}",
    ]
    pages = [
        ["slimdown.compare", "-o", f"all.{ending}"] for ending in ("html", "md", "csv", "json")
    ]
    for arguments, code in (
        (command, 0),
        (failing, 1),
        (unparsed, 1),
        *((page, 0) for page in pages),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == code, done.stdout + done.stderr
        shown.append(done.stdout + done.stderr)
    assert PLANTED not in "".join(shown)
    (mine / "planted.yaml").unlink()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {
        "multirun.yaml",
        "mlflow.db",
        "report.html",
        "report.md",
        "overrides.txt",
        "all.html",
        "config.yaml",
    } <= {file.name for file in files}
    assert [str(file) for file in files if PLANTED.encode() in file.read_bytes()] == []
    assert [str(file) for file in tmp_path.rglob("*") if PLANTED in file.name] == []
