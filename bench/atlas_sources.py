"""Read single answers from the public repositories of the atlas: `SOURCES`, by benchmark.

Files are read from clones by `git show COMMIT:PATH`, so it does not matter what is checked out, and
a clone without files (`--filter=blob:none --no-checkout`) loads only what is read. Scores follow
the rules of `bench/atlas.toml`. Where a repository has a script that scores, the same rule is
written here in our own words, and `bench.atlas --recount` compares the means with those that the
repository publishes.
"""

import csv
import json
import re
import string
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile


class MissingFileError(Exception):
    """A clone, a commit or a file is not there, or is not what it should be."""


@dataclass(frozen=True)
class Answer:
    """One model's answer to one question.

    Attributes:
        id: The question's name, the same for all models.
        score: From 0 to 1; None where the judge gave no verdict or the question was not asked.
        category: The question's subject, empty if there is none.
        cluster: What several questions share, such as a passage; empty if there is none.
        is_readable: Whether the score found an answer in the text.
        other_scores: By other rules for reading the same text.
        prompt, text, target: The question, the answer as written, and the right one.
    """

    id: str
    score: float | None
    category: str = ""
    cluster: str = ""
    is_readable: bool = True
    other_scores: Mapping[str, float] = field(default_factory=dict)
    prompt: str = ""
    text: str = ""
    target: str = ""

    @property
    def value(self) -> float:
        """The score of an answer that has one, as those of `read_answers` have."""
        assert self.score is not None
        return self.score


@dataclass(frozen=True)
class Clone:
    """A local clone of a repository, with a work tree or without."""

    folder: Path
    repository: str

    def read(self, commit: str, path: str) -> bytes:
        """Read a file as it was at a commit.

        Raises:
            MissingFileError: The clone, the commit or the file is not there.
        """
        if not self.folder.is_dir():
            advice = f"git clone --filter=blob:none --no-checkout {self.url} {self.folder}"
            raise MissingFileError(f"there is no clone {self.folder}; make one: {advice}")
        command = ["git", "-C", str(self.folder), "show", f"{commit}:{path}"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[:1]
            problem = f"{self.folder}: there is no {path} at {commit[:7]}"
            raise MissingFileError(f"{problem} ({' '.join(reason)})")
        return done.stdout

    @property
    def url(self) -> str:
        """Where the repository is cloned from."""
        return f"https://github.com/{self.repository}"


Reader = Callable[[Clone, tuple[str, ...], str], list[Answer]]
"""Takes a clone, the commits and the model's name; returns the model's answers."""

_LETTER = re.compile(r"\b[A-J]\b")
_ANSWER_IS = re.compile(r"answer is \(?([A-J])\)?")
_ANSWER_COLON = re.compile(r"[aA]nswer:\s*([A-J])")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_FRACTION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")

FIRST_LETTER, LAST_LETTER, CONTAINED = "first letter", "last letter", "contained"

_MMLU_PRO_FILES = {
    "Mistral-7B-v0.2": "Mistral-7B-v0.2-hf",
    "Llama-3.1-8B": "Meta-Llama-3_1-8B",
    "Llama-3.1-8B-Instruct": "Meta-Llama-3_1-8B-Instruct",
    "Llama-3.1-70B": "Meta-Llama-3_1-70B",
    "Llama-3.1-70B-Instruct": "Meta-Llama-3_1-70B-Instruct",
    "Yi-6B-Chat": "Yi-6b-Chat",
}


def read_mmlu_pro(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
    """Read MMLU-Pro's answers, which end in "The answer is (X)." where the model obeys."""
    name = _MMLU_PRO_FILES.get(model, model)
    packed = clone.read(commits[0], f"eval_results/model_outputs_{name}_5shots.zip")
    with ZipFile(BytesIO(packed)) as archive:
        [inside] = (part for part in archive.namelist() if part.endswith("_5shots.json"))
        outputs = json.loads(archive.read(inside))
    first_ids: dict[str, str] = {}
    answers = []
    for output in outputs:
        text, right = output["generated_text"], output["answer"]
        question_id = str(output["question_id"])
        letter = find_stated_letter(text)
        others = {LAST_LETTER: find_last_letter(text), FIRST_LETTER: find_first_letter(text)}
        options = (f"{chr(65 + i)}. {option}" for i, option in enumerate(output["options"]))
        answers.append(
            Answer(
                id=question_id,
                score=float(letter == right),
                category=output["category"],
                cluster=first_ids.setdefault(output["question"], question_id),
                is_readable=letter is not None,
                other_scores={rule: float(found == right) for rule, found in others.items()},
                prompt="\n".join([output["question"], *options]),
                text=text,
                target=right,
            )
        )
    return answers


def find_stated_letter(text: str) -> str | None:
    """Find the letter after "answer is": level 1 of MMLU-Pro's script.

    >>> find_stated_letter("So A or B. The answer is (C)."), find_stated_letter("So A or B.")
    ('C', None)
    """
    match = _ANSWER_IS.search(text)
    return match[1] if match else None


def find_last_letter(text: str) -> str | None:
    """Find the letter as level 2 of MMLU-Pro's script: stated, after a colon, else the last one.

    >>> find_last_letter("So A or B."), find_last_letter("Answer: D, not A"), find_last_letter("?")
    ('B', 'D', None)
    """
    if stated := find_stated_letter(text):
        return stated
    # The script's pattern begins with `.*`: it takes the last match of the first line with one.
    matches: list[re.Match[str]] = []
    for match in _ANSWER_COLON.finditer(text):
        if matches and "\n" in text[matches[-1].start() : match.start()]:
            break
        matches.append(match)
    letters = [match[1] for match in matches] or _LETTER.findall(text)
    return letters[-1] if letters else None


def find_first_letter(text: str) -> str | None:
    """Find the stated letter, else the first letter that stands by itself.

    >>> find_first_letter("So A or B."), find_first_letter("So A. The answer is B")
    ('A', 'B')
    """
    return find_stated_letter(text) or next(iter(_LETTER.findall(text)), None)


_ZERO_EVAL_FILES = {"Llama-3-70B-Instruct": "Meta-Llama-3-70B-Instruct"}


def read_zero_eval(data: str) -> Reader:
    """Make a reader of one of ZeroEval's data sets, whose answers are JSON with `answer`."""
    is_right = is_same_output if data == "crux" else is_same_number

    def read(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
        file = f"result_dirs/{data}/{_ZERO_EVAL_FILES.get(model, model)}.json"
        answers = []
        for output in json.loads(clone.read(commits[0], file)):
            [text] = output["output"]
            found, right = find_answer_field(text), str(output["answer"])
            score = float(found is not None and is_right(found, right))
            texts = {"prompt": output["chat_history"][0], "text": text, "target": right}
            answers.append(Answer(str(output["id"]), score, is_readable=found is not None, **texts))
        return answers

    return read


def find_answer_field(text: str) -> str | None:
    r"""Find the field `answer` of the first object in a text, as ZeroEval does it.

    Where the first object is no JSON, the field is searched for by its name.

    >>> find_answer_field('So {"reasoning": "2 + 2", "answer": "4"} or {"answer": "5"}')
    '4'
    >>> find_answer_field('{"reasoning": "a "quote"", "answer": "4"'), find_answer_field("4")
    ('4', None)
    """
    fields = _read_first_object(text)
    if fields is not None and "answer" in fields:
        return str(fields["answer"])
    patterns = (r'"answer"\s*:\s*"([^"]*)"', r'"answer"\s*:\s*([^,\s]*)', r"answer\s*:\s*([^,\s]*)")
    matches = (re.search(pattern, text) for pattern in patterns)
    return next((match[1] for match in matches if match), None)


def _read_first_object(text: str) -> dict[str, Any] | None:
    """Read the first text in balanced braces; None if there is none, or it is no JSON."""
    depth, start = 0, text.find("{")
    for place in range(max(start, 0), len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}" and depth:
            depth -= 1
            if depth == 0:
                try:
                    found = json.loads(text[start : place + 1].replace("\n", ""))
                except ValueError:
                    return None
                return dict(found)
    return None


def is_same_number(answer: str, right: str) -> bool:
    """Whether the first numbers of two texts are equal, as ZeroEval compares them.

    >>> is_same_number("$1,234 in all", "# 1234"), is_same_number("1/4", "0.25")
    (True, True)
    >>> is_same_number("none", "# 0")
    False
    """
    numbers = [_NUMBER.search(_clean_number(text)) for text in (answer, right)]
    found = [float(match.group()) for match in numbers if match]
    return len(found) == 2 and found[0] == found[1]


def _clean_number(text: str) -> str:
    text = text.replace("#", "").replace("$", "").strip().replace(",", "")
    if match := _FRACTION.fullmatch(text):
        return str(float(match[1]) / float(match[2])) if float(match[2]) else text
    return text


def is_same_output(answer: str, right: str) -> bool:
    r"""Whether a program's output was predicted, as ZeroEval compares it: without outer quotes.

    >>> is_same_output("'ab'", "ab"), is_same_output("'Ab'", "'ab'"), is_same_output("''", "")
    (True, False, True)
    """
    return answer.strip("'\"").replace("\n", "\\n") == right.strip("'\"")


def read_grade_school_math(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
    """Read the four solutions to each question that came with GSM8K in 2021."""
    size = "175b" if "175B" in model else "6b"
    key = f"{size}_{'verification' if 'verified' in model else 'finetuning'}"
    lines = clone.read(commits[0], "grade_school_math/data/example_model_solutions.jsonl")
    answers = []
    for number, line in enumerate(lines.decode().splitlines(), start=1):
        question = json.loads(line)
        solution = question[key]
        texts = {"prompt": question["question"], "text": solution["solution"]}
        score = float(solution["is_correct"])
        answers.append(Answer(str(number), score, target=question["ground_truth"], **texts))
    return answers


def read_llm_drift(file: str, score: Callable[[Mapping[str, str]], float]) -> Reader:
    """Make a reader of one of LLMDrift's files, with the function that scores a row."""

    def read(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
        rows = _read_csv(clone.read(commits[0], f"generation/{file}_EVAL.csv"))
        return [
            Answer(
                row["id"],
                score(row),
                category=row["dataset"],
                prompt=row["query"],
                text=row["answer"],
                target=row["ref_answer"],
            )
            for row in rows
            if row["model"] == f"openaichat/{model.lower()}"
        ]

    return read


def score_yes_or_no(row: Mapping[str, str]) -> float:
    """Score whether an answer says yes or no like the reference.

    A word counts with brackets or without; `yes` counts before `no`.

    >>> score_yes_or_no({"answer": "Step 1. [No].", "ref_answer": "No"})
    1.0
    >>> score_yes_or_no({"answer": "It might be.", "ref_answer": "No"})
    0.0
    """
    return float(_find_yes_or_no(row["answer"]) == _find_yes_or_no(row["ref_answer"]))


def _find_yes_or_no(text: str) -> str:
    words = text.lower().replace(",", " ").replace(".", " ").split()
    for word in ("yes", "no"):
        if any(word == found or f"[{word}]" in found for found in words):
            return word
    return ""


def score_boxed(row: Mapping[str, str]) -> float:
    r"""Score whether the first `boxed{...}` of an answer is that of the reference.

    >>> score_boxed({"answer": "So \\boxed{2}, not \\boxed{3}", "ref_answer": "\\boxed{2}"})
    1.0
    """
    pattern = r"boxed{([^}]*)}"
    found, right = (re.findall(pattern, row[key].lower()) for key in ("answer", "ref_answer"))
    return float(bool(found) and found[0] == right[0])


def score_submitted(column: str) -> Callable[[Mapping[str, str]], float]:
    """Make a function that scores whether LeetCode accepted a program."""
    return lambda row: float("Accepted" in row[column])


_SIZES = {"1.3B": "xl", "6B": "6b", "175B": "175b"}
_STAGES = {"GPT-3": "gpt", "SFT": "sft", "PPO": "ppo-noptx", "PPO-ptx": "ppo-ptx"}


def _name_instruct_model(model: str) -> str:
    stage, _, size = model.rpartition("-")
    return f"{_STAGES[stage]}-{_SIZES[size]}"


def read_instruct_samples(file: str, question_start: str) -> Reader:
    """Make a reader of InstructGPT's samples on a benchmark of reading, few-shot.

    Args:
        file: The benchmark.
        question_start: What stands between the passage and the questions.
    """

    def read(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
        content = clone.read(commits[0], f"automatic-eval-samples/{file}_samples.csv")
        rows = [row for row in _read_csv(content) if row["prompt_type"] == "fewshot"]
        contexts = sorted({row["context"] for row in rows})
        passages = sorted({text.partition(question_start)[0] for text in contexts})
        ids = {text: str(number) for number, text in enumerate(contexts, start=1)}
        answers = []
        for row in rows:
            if row["model_type"] != _name_instruct_model(model):
                continue
            text, references = row["sample"], row["ref_text"].split("|")
            first_line = normalize_words(text.strip().partition("\n")[0])
            right = [normalize_words(reference) for reference in references]
            is_inside = any(f" {words} " in f" {first_line} " for words in right)
            passage = passages.index(row["context"].partition(question_start)[0])
            answers.append(
                Answer(
                    id=ids[row["context"]],
                    score=float(first_line in right),
                    cluster=f"passage {passage + 1}",
                    other_scores={CONTAINED: float(is_inside)},
                    prompt=row["context"],
                    text=text,
                    target=row["ref_text"],
                )
            )
        return answers

    return read


def normalize_words(text: str) -> str:
    """Normalize an answer as SQuAD's script does it.

    >>> normalize_words("The  Danes, and a Norwegian.")
    'danes and norwegian'
    """
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def read_truthful_qa(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
    """Read InstructGPT's answers to TruthfulQA, as two judge models rated them."""
    content = clone.read(commits[0], "automatic-eval-samples/truthful_qa_samples.csv")
    rows = [row for row in _read_csv(content) if row["prompt_type"] == "QA prompt"]
    questions = sorted({row["question"] for row in rows})
    ids = {text: str(number) for number, text in enumerate(questions, start=1)}
    answers = []
    for row in rows:
        if row["model_type"] == _name_instruct_model(model):
            score = float(min(float(row["true"]), float(row["info"])) >= 0.5)
            texts = {"prompt": row["question"], "text": row["answer"]}
            answers.append(Answer(ids[row["question"]], score, **texts))
    return answers


def read_live_code_bench(file: str, metric: str) -> Reader:
    """Make a reader of one of LiveCodeBench's files; its scores are percent, −1 is not asked."""

    def read(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
        commit = commits[0] if file == "execution" else commits[1]
        name = model.replace("DeepSeek-Coder", "DSCoder").replace("Instruct", "Ins")
        if name.startswith("CodeLlama"):
            is_tuned = name.endswith("-Ins")
            name = name.replace("CodeLlama", "Cllama") if is_tuned else f"{name}-Base"
        content = json.loads(clone.read(commit, f"src/mocks/performances_{file}.json"))
        answers = []
        for performance in content["performances"]:
            if performance["model"].lower() == name.lower():
                percent = performance[metric]
                answers.append(
                    Answer(
                        id=str(performance.get("sample_id", performance["question_id"])),
                        score=None if percent < 0 else percent / 100,
                        category=performance.get("difficulty", ""),
                        cluster=str(performance["question_id"])
                        if "sample_id" in performance
                        else "",
                    )
                )
        return answers

    return read


_BFCL_FILES = {
    "Llama-3-70B-Instruct": "meta-llama_Meta-Llama-3-70B-Instruct",
    "Llama-3-8B-Instruct": "meta-llama_Meta-Llama-3-8B-Instruct",
    "firefunction-v2": "firefunction-v2-FC",
    "Hermes-2-Theta-8B": "NousResearch_Hermes-2-Theta-Llama-3-8B",
}


def read_bfcl(kinds: Mapping[str, str]) -> Reader:
    """Make a reader of some of BFCL's files, which list the failures after a line of counts."""

    def read(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
        answers = []
        for kind, name in kinds.items():
            path = f"2024-08-11/score/{_BFCL_FILES[model]}/{kind}_score.json"
            lines = clone.read(commits[0], path).decode().splitlines()
            counts, *failures = (json.loads(line) for line in lines if line.strip())
            failed, n = {failure["id"] for failure in failures}, counts["total_count"]
            is_whole = failed <= set(range(1, n + 1)) and n - len(failed) == counts["correct_count"]
            if not is_whole or len(failed) < len(failures):
                problem = f"{path} lists {len(failed)} failures of {n} questions"
                raise MissingFileError(f"{problem}, and says {counts['correct_count']} are right")
            for number in range(1, n + 1):
                score = float(number not in failed)
                answers.append(Answer(f"{name} {number}", score, category=name))
        return answers

    return read


def read_alpaca_eval(clone: Clone, commits: tuple[str, ...], model: str) -> list[Answer]:
    """Read GPT-4's preferences: 1 for the reference, 2 for the model, 0 or 1.5 for neither."""
    path = f"results/{model}/alpaca_eval_gpt4/annotations.json"
    annotations = json.loads(clone.read(commits[0], path))
    ids = {text: str(n) for n, text in enumerate(sorted(e["instruction"] for e in annotations), 1)}
    scores = {0: 0.5, 1: 0.0, 1.5: 0.5, 2: 1.0}
    return [
        Answer(
            ids[annotation["instruction"]],
            None if annotation["preference"] is None else scores[annotation["preference"]],
            category=annotation["dataset"],
            prompt=annotation["instruction"],
            text=annotation["output_2"],
        )
        for annotation in annotations
    ]


def _read_csv(content: bytes) -> Iterator[dict[str, str]]:
    return csv.DictReader(StringIO(content.decode(), newline=""))


_CALLS = {
    "simple": "simple",
    "multiple_function": "multiple",
    "parallel_function": "parallel",
    "parallel_multiple_function": "parallel-multiple",
}

SOURCES: dict[str, Reader] = {
    "MMLU-Pro": read_mmlu_pro,
    "GSM8K, zero-shot": read_zero_eval("gsm"),
    "CRUX": read_zero_eval("crux"),
    "MATH, level 5": read_zero_eval("math-l5"),
    "GSM8K, fine-tuned in 2021": read_grade_school_math,
    "prime numbers": read_llm_drift("PRIME_FULL", score_yes_or_no),
    "happy numbers": read_llm_drift("COUNTAHAPPYNUMBER", score_boxed),
    "LeetCode, as written": read_llm_drift("LEETCODE_EASY", score_submitted("Code_Submit")),
    "LeetCode, without Markdown": read_llm_drift(
        "LEETCODE_EASY", score_submitted("Clean_Code_Submit")
    ),
    "SQuADv2, few-shot": read_instruct_samples("squadv2", "\n\nQ:"),
    "DROP, few-shot": read_instruct_samples("drop", "\nQuestion:"),
    "TruthfulQA, QA prompt": read_truthful_qa,
    "LiveCodeBench, execution": read_live_code_bench("execution", "Pass@1"),
    "LiveCodeBench, execution with reasoning": read_live_code_bench("execution", "Pass@1-COT"),
    "LiveCodeBench, generation": read_live_code_bench("generation", "pass@1"),
    "BFCL, calls": read_bfcl(_CALLS),
    "BFCL, no call fits": read_bfcl({"relevance": "relevance"}),
    "AlpacaEval": read_alpaca_eval,
}
"""The reader of each benchmark in `bench/atlas.toml`."""


def read_answers(
    name: str, clone: Clone, commits: tuple[str, ...], models: tuple[str, ...]
) -> dict[str, list[Answer]]:
    """Read what several models answered to the questions that all of them have a score for.

    Args:
        name: The benchmark, as `SOURCES` names it.
        clone: Of the repository.
        commits: The commits that its files are read at.
        models: A pair or a chain.

    Returns:
        By model, the answers in one order.

    Raises:
        MissingFileError: A file is missing, or holds no answers of a model.
    """
    by_model: dict[str, dict[str, Answer]] = {}
    for model in models:
        answers = SOURCES[name](clone, commits, model)
        if not answers:
            raise MissingFileError(f"{clone.folder}: no answers of {model} to {name}")
        by_id = {answer.id: answer for answer in answers}
        if len(by_id) < len(answers):
            raise MissingFileError(f"{clone.folder}: {model} answers a question of {name} twice")
        by_model[model] = by_id
    shared = set.intersection(*(set(by_id) for by_id in by_model.values()))
    usable = {i for i in shared if all(by_id[i].score is not None for by_id in by_model.values())}
    first = by_model[models[0]]
    order = [question_id for question_id in first if question_id in usable]
    return {model: [by_id[i] for i in order] for model, by_id in by_model.items()}


def read_published_mean(
    name: str, clone: Clone, commits: tuple[str, ...], model: str
) -> float | None:
    """Read the mean, in percent, that a repository publishes of a model's answers; None: none."""
    if name == "AlpacaEval":
        folder = "src/alpaca_eval/leaderboards/data_AlpacaEval"
        content = clone.read(commits[0], f"{folder}/alpaca_eval_gpt4_leaderboard.csv")
        return next(float(row["win_rate"]) for row in _read_csv(content) if row[""] == model)
    summaries = {"GSM8K, zero-shot": "gsm", "CRUX": "crux", "MATH, level 5": "math-l5"}
    if name not in summaries:
        return None
    content = clone.read(commits[0], f"result_dirs/{summaries[name]}.summary.json")
    file = _ZERO_EVAL_FILES.get(model, model)
    return next(float(row["Acc"]) for row in json.loads(content) if row["Model"] == file)
