"""No task runs Python of the hub or of the working folder, not even on the way to its refusal."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import evaluate
import pytest
from commands_and_runs import QuietHandler, serve
from tiny_benchmarks import make_benchmark_config, make_config, wrap_tiny_model

from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.hub_metrics import forbid_hub_metrics
from slimdown.evaluation.tasks import load_tasks
from slimdown.pocket import TASKS_DIR
from slimdown.utils.errors import ConfigError

HARNESS = Path(str(find_spec("lm_eval").origin)).with_name("tasks")  # type: ignore[union-attr]


def calls_load(file: Path) -> bool:
    text = file.read_text()
    by_name = "from evaluate import load" in text and re.search(r"[^.\w]load\(", text)
    return bool(by_name or re.search(r"evaluate\.load\(", text))


CALLING = sorted(str(f.relative_to(HARNESS)) for f in HARNESS.rglob("*.py") if calls_load(f))
METRICS = ["NAME", "bertscore", "bleu", "bleurt", "code_eval", "f1", "rouge", "squad_v2"]
TASK = f"include: {TASKS_DIR}/pocket_instructions.yaml\n" + "task: {name}\n"
CODED = "process_docs: !function {name}.run\nmetric_list: [{{metric: exact_match}}]\n"
SCORED = "process_results: !function {name}.score\n"
SCORED += "metric_list: [{{metric: own, aggregation: mean, higher_is_better: true}}]\n"
PLAIN = "metric_list: [{{metric: exact_match}}]\n"

PYTHON = {
    "by_name": "from evaluate import load\nload('NAME')",
    "by_star": "from evaluate import *\nload('NAME')",
    "of_submodule": "from evaluate.loading import load\nload('NAME')",
    "by_sys": "import sys\nsys.modules['evaluate'].load('NAME')",
    "in_function": "def run(docs):\n    import os, evaluate\n    return evaluate.load('NAME')",
    "of_suite": "exec('import evaluate; evaluate.EvaluationSuite.load(\"NAME\")')",
    "swallowed": "try: exec('import evaluate; evaluate.load(\"NAME\")')\nexcept Exception: pass",
    "unparseable": "def run(docs)\n",
}
YAML = {
    "flagged": "metric_list: [{{metric: f1, hf_evaluate: true}}]\n",
    "named": "metric_list: [{{metric: NAME}}]\n",
    "unsafe": f"unsafe_code: true\n{CODED}".replace("{name}", "by_name"),
    "in_template": PLAIN + 'doc_to_text: "{{{{ cycler.__init__.__globals__.__builtins__'
    ".__import__('evaluate').load('NAME') }}}}\"\n",
}
GROUPS = {
    "inner_group": "group: inner_group\ntask: [{group: inner, task: [harmless, flagged]}]\n",
    "self": "group: self\ntask: [self, by_name]\n",
}

ASK = """
import json, sys
from pathlib import Path
import lm_eval.tasks
from slimdown.config.benchmark_config import BenchmarkConfig
from slimdown.evaluation import tasks
from slimdown.utils.errors import SlimdownError

def ask(task, folder=None):
    try:
        tasks.load_tasks({task: BenchmarkConfig(task)}, folder)
    except (SlimdownError, SystemExit) as error:
        return str(error)
    return "is loaded"

calling, own, folder = json.loads(sys.argv[1])
tasks.check_task_names = lambda *_: ()  # it walks 14,000 files each time
answers = {task: ask(task, folder) for task in own}
root = Path(lm_eval.tasks.__file__).parent
folders = sorted({str((root / file).parent) for file in calling})  # all would take seconds
manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
lm_eval.tasks.TaskManager = lambda **_: manager
texts = {name: repr(entry.cfg) for name, entry in manager.task_index.items()}
for file in calling:
    named = f"{root / file}".removesuffix(".py") + "."
    task = next(name for name, text in texts.items() if named in text)
    answers[file] = f"{task}: {ask(task)}"
print(json.dumps(answers))
"""


def write_tasks(folder: Path) -> list[str]:
    """Write task files, and return the names of those that are to be refused."""
    harmless = (
        "import evaluate  # without use, as in the harness's xquad\ndef run(docs): return docs"
    )
    for name, text in {**PYTHON, "harmless": harmless}.items():
        (folder / f"{name}.py").write_text(text if "run(" in text else f"{text}\ndef run(d): ...\n")
    settings = dict.fromkeys(["harmless", *PYTHON], CODED) | YAML
    for name, text in settings.items():
        (folder / f"{name}.yaml").write_text((TASK + text).format(name=name))
    for name, text in GROUPS.items():
        (folder / f"{name}.yaml").write_text(text)
    return [*PYTHON, *YAML, *GROUPS]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tasks are answered, by task or file, in a folder full of scripts to be run."""
    folder, own = tmp_path_factory.mktemp("working"), tmp_path_factory.mktemp("own")
    requests: list[str] = []

    class Hub(QuietHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    for name in METRICS:
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write('!')")
    link = own.with_name("link")
    names = write_tasks(own)
    link.symlink_to(own)
    with serve(Hub) as address:
        hub = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}
        questions = json.dumps([CALLING, ["harmless", *names], str(link)])
        result = subprocess.run(
            [sys.executable, "-c", ASK, questions],
            cwd=folder,
            env={**os.environ, **hub},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert result.returncode == 0, result.stderr
    ran = (folder / "ran").exists()
    return {**json.loads(result.stdout.splitlines()[-1]), "ran": ran, "requests": requests}


def test_no_metric_from_outside_is_run_or_asked_for(answers: dict[str, Any]) -> None:
    assert not answers["ran"]
    # The harness's rows are asked for: a task is read with its data.
    assert not re.search("/spaces/|/metrics/", " ".join(answers["requests"]))
    assert answers["harmless"] == "is loaded"


@pytest.mark.parametrize("file", CALLING)
def test_tasks_of_the_harness_that_fetch_metrics_are_refused_by_name(
    file: str, answers: dict[str, Any]
) -> None:
    task, _, answer = answers[file].partition(": ")
    assert answer.startswith(f"benchmark.{task}")
    assert "\n" not in answer


def test_the_harness_has_as_many_such_files_as_were_looked_at() -> None:
    assert len(CALLING) >= 29  # a search that finds none would test none


@pytest.mark.parametrize("task", [*PYTHON, *YAML, *GROUPS])
def test_own_tasks_that_fetch_metrics_are_refused_by_name(
    task: str, answers: dict[str, Any]
) -> None:
    reasons = r"takes a metric from evaluate\.load|the model writes|SyntaxError|contains itself"
    assert re.match(rf"benchmark\.{task}(\.task={task})?:? .*({reasons})", answers[task])
    assert "\n" not in answers[task]


@pytest.mark.parametrize("is_caught", [False, True])
def test_a_task_that_fetches_its_metric_at_scoring_is_stopped(
    is_caught: bool, tmp_path: Path
) -> None:
    call = "sys.modules['evaluate'].load('NAME')"
    caught = f"try: {call}\n    except Exception: pass\n    return {{'own': 1.0}}"
    code = f"import sys\ndef score(doc, results):\n    {caught if is_caught else call}\n"
    (tmp_path / "late.py").write_text(code)
    (tmp_path / "late.yaml").write_text((TASK + SCORED).format(name="late"))
    benchmark = make_benchmark_config("late", metric="own", max_gen_toks=8, limit=2)
    refusal = r"a task takes a metric from evaluate\.load"
    with pytest.raises(ConfigError, match=rf"^benchmark\.late: {refusal}"):
        load_tasks({"late": benchmark}, str(tmp_path))
    (tmp_path / "late.py").write_text(code.replace(call, f"results == ['made up'] or {call}"))
    tasks = load_tasks({"late": benchmark}, str(tmp_path))  # as if an answer alone led there
    model = wrap_tiny_model()
    with pytest.raises(ConfigError, match=refusal):
        Evaluator(tasks, make_config()).evaluate(model)


def test_evaluate_is_as_before_after_errors_and_nested_use(tmp_path: Path) -> None:
    for error in (None, KeyError("own")):
        with pytest.raises(ConfigError), forbid_hub_metrics():
            with forbid_hub_metrics():
                pass
            with pytest.raises(ConfigError, match=r"evaluate\.load"):
                evaluate.load("NAME")
            if error:
                raise error
    with pytest.raises(KeyError), forbid_hub_metrics():
        raise KeyError("a task's own error stays")
    with pytest.raises(FileNotFoundError):  # the package's own answer
        evaluate.load(str(tmp_path / "none.py"))
