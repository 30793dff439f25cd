"""Inspect's logs, written by Inspect and spoiled. `make test-inspect` runs these: see pyproject."""

import json
import zipfile
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
from builders import Capture, Patch
from replayed_answers import assert_refused, describe_findings, write_logs

from slimdown.commands import verdict
from slimdown.evaluation.logs import inspect
from slimdown.evaluation.logs.read_logs import read_logs
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.findings import judge
from slimdown.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.inspect


def read_words(base: Path) -> Any:
    """The log that is JSON, as Inspect's objects."""
    from inspect_ai.log import read_eval_log

    [file] = base.glob("*_words_*.json")
    return read_eval_log(str(file))


def rewrite(base: Path, edit: Callable[[Any], object], name: str = "log.eval") -> Path:
    """Write that log again with changes, by Inspect's writer."""
    from inspect_ai.log import write_eval_log

    log = read_words(base)
    edit(log)
    write_eval_log(log, str(base.parent / name))
    return base.parent / name


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_logs("inspect", tmp_path)[0]


def read_one(path: Path, *metrics: dict[str, str]) -> BenchmarkEvaluation:
    [benchmark] = read_logs(path, *metrics).benchmarks.values()
    return benchmark


def test_the_same_answers_have_the_same_findings(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    expected = describe_findings(*write_logs("csv", tmp_path / "tables"))
    base, tuned = write_logs("inspect", tmp_path)
    assert describe_findings(base, tuned) == expected
    conditions = judge(read_logs(base), read_logs(tuned)).conditions
    assert conditions["harness_version"].startswith("inspect_ai 0.")


def test_verdict_takes_a_folder_and_a_file(tmp_path: Path, capsys: Capture) -> None:
    base, tuned = write_logs("inspect", tmp_path)
    choice = ["--metric", "sums=exact", "--max-loss", "words=off"]
    assert verdict.main([str(base), str(tuned), *choice]) == 1
    files = [str(next(side.glob("*.eval"))) for side in (base, tuned)]
    assert verdict.main([*files, *choice[:2], "--max-loss", "0.02"]) == 1  # of sums alone
    assert "forgotten" in capsys.readouterr().out


def set_scores(make: Callable[[int], Any]) -> Callable[[Any], None]:
    """Replace the scores: what `make` gives to each number is the value by scorer."""
    from inspect_ai.scorer import Score

    def edit(log: Any) -> None:
        for sample in log.samples:
            values = make(sample.id)
            sample.scores = {k: Score(value=v, answer="B") for k, v in values.items()}

    return edit


def test_grades_of_a_model_are_read_as_numbers(base: Path) -> None:
    file = rewrite(base, set_scores(lambda i: {"model_graded_qa": "CIPN"[i % 4]}))
    read = read_one(file)
    assert [s.scores["model_graded_qa"] for s in read.samples[:4]] == [1, 0, 0.5, 0]
    assert read.samples[0].answers == {"model_graded_qa": "B"}


def test_one_of_several_scorers_and_named_scores_is_chosen(base: Path) -> None:
    values: Callable[[int], Any] = lambda i: {  # noqa: E731
        "includes": True,
        "my/grader": {"style": i / 40, "length": 900, "note": "fine"},
        "found": ["a"],
    }
    file = rewrite(base, set_scores(values))
    assert read_one(file).benchmark.metric == "includes"
    read = read_one(file, {"words": "my_grader.style"})
    assert read.score.value == pytest.approx(39 / 80)
    with pytest.raises(DataError, match=r"'0' has my_grader.length=900.0"):
        read_logs(file, {"words": "my_grader.length"})
    with pytest.raises(ConfigError, match=r"words=my_grader.styl: .*my_grader.style"):
        read_logs(file, {"words": "my_grader.styl"})


def test_epochs_of_a_question_are_averaged(base: Path) -> None:
    def ask_twice(log: Any) -> None:
        set_scores(lambda i: {"exact": "C"})(log)
        again = [sample.model_copy(deep=True, update={"epoch": 2}) for sample in log.samples]
        for sample in again[::2]:
            sample.scores["exact"].value = "I"
        log.samples += again
        log.eval.config.epochs = 2
        log.results.total_samples = 80

    def ask_one_less(log: Any) -> None:
        ask_twice(log)
        log.samples[0].epoch = 2

    read = read_one(rewrite(base, ask_twice))
    assert (len(read.samples), read.samples[0].scores) == (40, {"exact": 0.5})
    assert_refused(rewrite(base, ask_one_less, "log.json"), "'0' was not asked")


def test_choices_give_chance_and_their_order_is_compared(base: Path) -> None:
    def edit(log: Any) -> None:
        for sample in log.samples:
            sample.choices, sample.target = ["a", "b", "c", "d"], "A"

    assert read_one(rewrite(base, edit)).benchmark.chance == 0.25

    def shuffle(log: Any) -> None:
        edit(log)
        log.samples[5].choices = ["b", "a", "c", "d"]

    shuffled = read_logs(rewrite(base, shuffle, "other.json"))
    with pytest.raises(DataError, match=r"5 of words.*doc_hash"):
        judge(read_logs(base.parent / "log.eval"), shuffled)


def add_messages(log: Any) -> None:
    """A worked example and a tool's answer in the input, and a system message before it."""
    from inspect_ai import model
    from inspect_ai.tool import ToolCall

    user, system = model.ChatMessageUser, model.ChatMessageSystem
    for sample in log.samples:
        call = ToolCall(id="one", function="look", arguments={"at": "x"})
        sample.input = [
            user(content="Look."),
            model.ChatMessageAssistant(content="", tool_calls=[call], source="input"),
            model.ChatMessageTool(content="seen", tool_call_id="one", function="look"),
            user(content=f"And {sample.id}?"),
        ]
        answers = [m for m in sample.messages if m.role == "assistant"]
        sample.messages = [system(content="Be brief."), *sample.input, *answers, user(content="?")]


def test_messages_of_tools_are_part_of_the_prompt(base: Path) -> None:
    sample = read_one(rewrite(base, add_messages)).samples[3]
    expected = ["system: Be brief.", "user: Look.", "assistant: ", "tool: seen", "user: And 3?"]
    assert sample.prompt.split("\n\n") == expected

    def call_otherwise(log: Any) -> None:
        add_messages(log)
        log.samples[3].input[1].tool_calls[0].arguments = {"at": "y"}

    changed = read_one(rewrite(base, call_otherwise, "other.eval")).samples[3]
    assert (changed.prompt, changed.target) == (sample.prompt, sample.target)
    assert changed.prompt_hash != sample.prompt_hash  # and the ids of messages are not in it
    again = read_one(rewrite(base, add_messages, "again.json")).samples[3]
    assert again.prompt_hash == sample.prompt_hash


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda log: log.plan.config.__setattr__("temperature", 0.5), "words.generation differs"),
        (lambda log: log.eval.__setattr__("task_args", {"shots": 2}), "words.task_args differs"),
        (lambda log: log.eval.scorers[0].__setattr__("name", "f1"), "words.scorers differs"),
        (lambda log: log.eval.__setattr__("task_version", 2), "task_version differs"),
        (lambda log: log.samples[3].__setattr__("target", "x"), "target differs"),
    ],
)
def test_other_settings_differ(edit: Callable[[Any], object], problem: str, base: Path) -> None:
    [file] = base.glob("*_words_*")
    changed = rewrite(base, edit)
    with pytest.raises(DataError, match=problem):
        judge(read_logs(file), read_logs(changed))


def test_where_it_ran_may_differ_and_no_key_is_kept(base: Path) -> None:
    def edit(log: Any) -> None:
        log.eval.model_args = {"model_path": "/x", "api_key": "swordfish", "device": "cpu"}
        log.plan.config.max_connections = 7
        log.eval.task_args = {"url": "http://me:swordfish@host"}

    def ask_alike(log: Any) -> None:
        log.eval.task_args = {"url": "http://you:other@host"}

    changed = read_logs(rewrite(base, edit))
    assert "swordfish" not in str(changed.conditions)
    alike = rewrite(base, ask_alike, "alike.eval")
    assert judge(read_logs(alike), changed).benchmarks["words"].primary.difference.value == 0


def test_the_newest_log_of_a_task_is_read_and_a_failed_older_one_is_not(base: Path) -> None:
    older = f"{base.name}/2020-01-01T00-00-00+00-00_words_{{}}.eval"
    rewrite(base, lambda log: log.__setattr__("status", "error"), older.format("failed"))
    notes: list[str] = []
    assert set(read_logs(base, on_note=notes.append).benchmarks) == {"sums", "words"}
    assert "holds 3 results" in notes[0]
    rewrite(base, lambda log: log.eval.__setattr__("model", "hf/other"), older.format("other"))
    assert_refused(base, "hf/other and replay/base")


def fail(log: Any) -> None:
    from inspect_ai._util.error import EvalError

    log.samples[3].error = EvalError(message="no", traceback="", traceback_ansi="")


def invalidate(log: Any) -> None:
    from inspect_ai.log import ProvenanceData

    log.samples[3].invalidation = ProvenanceData(author="me", reason="leaked")


def with_value(value: Any) -> Callable[[Any], object]:
    return lambda log: log.samples[3].scores["exact"].__setattr__("value", value)


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "cancelled": (lambda log: log.__setattr__("status", "cancelled"), "cancelled; .*eval-retry"),
    "an error": (fail, "question '3' ended in an error"),
    "invalidated": (invalidate, "question '3' was invalidated"),
    "no scores": (lambda log: log.samples[3].__setattr__("scores", None), "'3' has no score"),
    "another scorer": (
        lambda log: log.samples[3].__setattr__("scores", {"f1": log.samples[0].scores["exact"]}),
        "question '3' has exact=None",
    ),
    "NaN": (with_value(nan), "question '3' has exact="),
    "of ten": (with_value(7), "question '3' has exact=7.0; a number from 0 to 1"),
    "a text": (with_value("very good"), "question '3' has exact=None"),
    "some samples": (lambda log: log.samples.pop(), "holds 39 answers, and not those of all"),
}


@pytest.mark.parametrize("ending", ["eval", "json"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_evaluation_is_refused(name: str, ending: str, base: Path) -> None:
    edit, problem = REFUSED[name]
    file = rewrite(base, edit, f"log.{ending}")
    assert_refused(file, problem)


def pack(content: dict[str, bytes]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in content.items():
                packed.writestr(name, data)

    return write


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change_bytes(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:200] + bytes(40) + data[240:])


def lie_about_size(file: Path, declared: int) -> None:
    """Make a member unpack to more than the archive declares."""
    with zipfile.ZipFile(file) as packed:
        [name] = [n for n in packed.namelist() if n.startswith("samples/3_")]
        content, header = packed.read(name), packed.getinfo(name)
    data = bytearray(file.read_bytes())
    size = len(content).to_bytes(4, "little")
    start = header.header_offset
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    for place in (start + 22, central + 24):
        assert data[place : place + 4] == size
        data[place : place + 4] = declared.to_bytes(4, "little")
    file.write_bytes(data)


SPOILED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty": ("eval", lambda file: file.write_bytes(b"")),
    "cut": ("eval", cut),
    "cut JSON": ("json", cut),
    "bytes changed": ("eval", change_bytes),
    "deep": ("json", lambda file: file.write_text("[" * 100_000)),
    "a deep header": ("eval", pack({"header.json": b"[" * 100_000})),
    "more than declared": ("eval", lambda file: lie_about_size(file, 10)),
    "another archive": ("eval", pack({"x.txt": b"x"})),
    "a header of another kind": ("eval", pack({"header.json": b"[1]"})),
    "other JSON": ("json", lambda file: file.write_text(json.dumps({"id": 1}))),
    "a table": ("json", lambda file: file.write_text(json.dumps([{"id": 1, "score": 1}]))),
    "UTF-16": ("json", lambda file: file.write_text(file.read_text(), encoding="utf-16")),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_is_refused_in_words(name: str, base: Path) -> None:
    ending, spoil = SPOILED[name]
    file = rewrite(base, lambda log: None, f"log.{ending}")
    spoil(file)
    assert_refused(file, r"log\.(eval|json)\W.*no log of")


def test_a_log_is_refused_where_it_would_take_all_memory(base: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(inspect, "_LARGEST_LOG", 64 * 2**20)
    large = rewrite(base, lambda log: None)
    with zipfile.ZipFile(large, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("samples/large.json", b" " * (64 * 2**20))
    assert_refused(large, r"log\.eval has 67,.*reads 67,108,864 at most")
    monkeypatch.setattr(inspect, "_LARGEST_LOG", 1000)
    [words] = base.glob("*_words_*.json")
    assert_refused(words, r"words.*\.json has .*reads 1,000 at most")


@pytest.mark.parametrize("name", ["a::b.eval", "s3:x.eval", "a#b?c%20d.eval", "ü $(x)\n.eval"])
def test_hostile_names_are_read(name: str, base: Path, monkeypatch: Patch) -> None:
    rewrite(base, lambda log: None).rename(base.parent / name)
    monkeypatch.chdir(base.parent)
    assert len(read_one(Path(name)).samples) == 40
