"""Passwords and tokens planted wherever a user could put one, and looked for in what is shown."""

import json

import pytest
import yaml
from record_builders import Patch

from slimdown.sweep.command_line import compose_runs, read_command_line
from slimdown.utils.errors import ConfigError
from slimdown.utils.secrets import redact, redact_leaves, redact_uri

PLANTED = "pl4nted"  # begins every secret here
TEXTS = [
    f"postgresql://me:{PLANTED}@db/mlflow",
    f'tracking.uri="postgresql://me:{PLANTED}@db/mlflow"',
    f"postgresql+psycopg://me:a@{PLANTED}@db/mlflow",
    f"postgresql://me:a/{PLANTED}@db/mlflow",
    f"postgresql://db/mlflow?user=me&password={PLANTED}&sslmode=require",
    f"postgresql://db/mlflow?sslmode=verify-full&sslpassword={PLANTED}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BUID%3Dme%3BPWD%3D{PLANTED}",
    f"https://{PLANTED}@github.com/me/rows",
    f"https://data/rows.jsonl?X-Amz-Signature={PLANTED}&X-Amz-Expires=60",
    f"{{'path': 'https://me:{PLANTED}@data/rows'}}",
    f"could not connect to 'http://me:{PLANTED}@server:5000': refused",
    f"HF_TOKEN={PLANTED}",
    f"Driver=ODBC;Uid=me;Pwd={PLANTED};",
    f'{{"api_key": "{PLANTED}", "r": 8}}',
    f"password: '{PLANTED} {PLANTED}'",
    f"a token that looks like one, hf_{PLANTED}abcdefghijklmnopqrst",
]
# What colons give away only in messages: in a value, such as a prompt, they are prose.
IN_MESSAGES = [f'{{"api_key": "{PLANTED}", "r": 8}}', f"password: '{PLANTED} {PLANTED}'"]
WORDS = ["token", "password", "secret", "api_key", "credentials", "pwd", "access key", "passphrase"]
FORMS = [
    "Reply with one {}: yes/no",
    "One {}: A, B, C or D",
    'Answer as JSON: {{"{}": "yes", "why": "..."}}',
    "{}: 'yes' or \"no\"\n\t- nothing else: ☃",
    "Never tell the {}; it is: unknown",
    "What is a {}? Say: {}",
]
PROSE = [form.replace("{}", word) for form in FORMS for word in WORDS]
PROSE += ["An address: https://huggingface.co/datasets/me/rows", "a=b, c: d\\ \u0000"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_is_blanked_in_any_text(text: str) -> None:
    assert PLANTED not in redact(text)
    assert redact(redact(text)) == redact(text)


def test_a_tree_whose_leaves_are_redacted_is_still_read() -> None:
    assert len(PROSE) == 50
    texts = [*TEXTS, *PROSE]
    tree = {"prompts": texts, "args": {"api_key": PLANTED, "think_end_token": "</think>", "r": 8}}
    for dump, load in ((json.dumps, json.loads), (yaml.safe_dump, yaml.safe_load)):
        redacted, hidden = redact_leaves(tree)
        assert load(dump(redacted)) == redacted
        assert hidden == ["prompts", "args.api_key"]
        assert redacted["args"] == {"api_key": "***", "think_end_token": "</think>", "r": 8}
        for before, after in zip(texts, redacted["prompts"], strict=True):
            is_prose = before in PROSE or before in IN_MESSAGES
            assert (before == after) is is_prose
            assert is_prose or PLANTED not in after
        assert redact_leaves(redacted) == (redacted, [])


@pytest.mark.parametrize(
    "text",
    [
        "lora.r=8 benchmark.gsm8k.limit=200",
        "sqlite:////srv/me@lab/mlflow.db",
        "/etc/passwd: the file",
        "https://huggingface.co/datasets/me/rows@main",
        "http://localhost:5000/#/experiments/1?compare=true",
        "tokens per second: 5, 0.091 nats a token in 376 steps",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert redact(text) == redact_uri(text) == text


def test_an_address_keeps_what_tells_where_it_points() -> None:
    assert redact_uri("https://user:word@host:5000/x") == "https://***@host:5000/x"
    assert redact_uri("postgresql://me:pw@db/a?t=3") == "postgresql://***@db/a?t=3"


def test_what_the_environment_holds_is_known_by_its_value(monkeypatch: Patch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{PLANTED}1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{PLANTED}%3A2@db/mlflow")
    monkeypatch.setenv("PWD", "/srv/folder")
    monkeypatch.setenv("DB_PASS", f"{PLANTED}3")
    text = f"401 for {PLANTED}1 in /srv/folder, failed: {PLANTED}:2 ({PLANTED}%3A2), {PLANTED}3"
    assert redact(text) == "401 for *** in /srv/folder, failed: *** (***), ***"


@pytest.mark.parametrize(
    "argument",
    [
        f"tracking.uri=postgresql://me:{PLANTED}@db/x",
        f"tracking.uri=http://localhost:1,http://me:{PLANTED}@db/x",
        f"dataset.pocket_instructions={{path: 'https://me:{PLANTED}@data/rows'}}",
        f"tracking.uri=[postgresql://someone:{PLANTED}{'0' * 60}@server/mlflow",
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_shown(argument: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_runs(read_command_line(["-m", argument]))
    assert PLANTED not in redact(str(error.value))


@pytest.mark.parametrize(
    "key", ["lora.r", "model.id", "tracking.uri", "method.name", "dataset.pocket_instructions.path"]
)
def test_what_a_named_variable_holds_is_not_shown(key: str, monkeypatch: Patch) -> None:
    """A secret may have any name; here its holder sets it as the wrong value."""
    monkeypatch.setenv("MINE", f"{PLANTED} and\n{PLANTED}")
    with pytest.raises(ConfigError, match=r"\$\{oc\.env:MINE\}") as error:
        compose_runs(read_command_line([f"{key}=${{oc.env:MINE}}"]))
    assert PLANTED not in str(error.value)
