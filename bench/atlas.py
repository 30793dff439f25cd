"""Judge what well-known fine-tunes learned and forgot, from answers that others published.

    python -m bench.atlas CLONES                        print the tables of docs/atlas.md
    python -m bench.atlas CLONES --page docs/atlas.md   write them into the page
    python -m bench.atlas CLONES --recount              count every row again by other libraries
    python -m bench.atlas CLONES --texts                tables with questions and answers
    python -m bench.atlas CLONES --ship docs/examples/atlas    scores that may be passed on

CLONES is a folder with clones of the repositories in `bench/atlas.toml`, each under its own name.
A clone without files is enough, since only the files that are read are loaded:

    git clone --filter=blob:none --no-checkout https://github.com/TIGER-AI-Lab/MMLU-Pro

The scores of each model are written as a table (CSV: id, score, category, and what questions share)
to the folder `tables` in CLONES; every row is then judged from two of these tables, as `slimdown
verdict` does it. A file that is missing is named, and its rows are left out.
"""

import argparse
import csv
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from bench.atlas_sources import (
    CONTAINED,
    FIRST_LETTER,
    LAST_LETTER,
    SOURCES,
    Answer,
    Clone,
    MissingFileError,
    read_answers,
    read_published_mean,
)
from slimdown.evaluation.logs.read_logs import read_logs
from slimdown.judging.findings import BenchmarkChange, Findings, judge
from slimdown.judging.stages import judge_stages
from slimdown.judging.verdicts import Verdict, decide_verdicts
from slimdown.report.formatting import format_count, format_number, format_points
from slimdown.report.tables import make_table, write_table
from slimdown.report.verdict_styles import find_style

FAMILY = Path(__file__).with_name("atlas.toml")
SCORES = "scores"  # slimdown's name for a table that is given by itself


@dataclass(frozen=True)
class Source:
    """A repository, the commits at which it is read, and what its licence allows."""

    repository: str
    commits: tuple[str, ...]
    licence: str
    shipped: bool


@dataclass(frozen=True)
class Group:
    """Models that were asked one benchmark: a pair, or a chain of three.

    Attributes:
        benchmark: Its name in the family.
        source: The name of its repository.
        cluster: The column by which questions count as one; empty if there is none.
        models: In their order.
    """

    benchmark: str
    source: str
    cluster: str
    models: tuple[str, ...]

    @property
    def is_chain(self) -> bool:
        """Whether each model is judged against the one before, and the last against the first."""
        return len(self.models) > 2


@dataclass(frozen=True)
class AtlasRow:
    """One row of the page: a pair on a benchmark, judged."""

    group: Group
    base: str
    tuned: str
    findings: Findings

    @property
    def change(self) -> BenchmarkChange:
        """What changed."""
        return self.findings.benchmarks[SCORES]

    @property
    def pair(self) -> str:
        """Both models, the second without what both names begin with."""
        return f"{self.base} → {shorten_name(self.base, self.tuned)}"

    @property
    def n_moved(self) -> tuple[int, int]:
        """On how many questions the score fell, and on how many it rose."""
        changes = self.change.primary.difference.changes
        return int((changes < 0).sum()), int((changes > 0).sum())


def shorten_name(base: str, tuned: str) -> str:
    """Leave out the parts of a name with which another one begins, too.

    >>> shorten_name("Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1"), shorten_name("a-1", "b-1")
    ('Instruct-v0.1', 'b-1')
    >>> shorten_name("phi-2", "phi-2-sft"), shorten_name("phi-2", "phi-2")
    ('sft', 'phi-2')
    """
    parts = tuned.split("-")
    pairs = zip(base.split("-"), parts, strict=False)
    n_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return "-".join(parts[n_shared:]) or tuned


def read_family(file: Path = FAMILY) -> tuple[dict[str, Source], list[Group]]:
    """Read the family: the repositories, and the groups in the page's order."""
    family = tomllib.loads(file.read_text())
    groups = []
    for benchmark in family["benchmarks"]:
        chains = [benchmark["chain"]] if "chain" in benchmark else []
        for models in [*chains, *benchmark["pairs"]]:
            cluster = benchmark.get("cluster", "")
            groups.append(Group(benchmark["name"], benchmark["source"], cluster, tuple(models)))
    sources = {
        name: Source(**source | {"commits": tuple(source["commits"])})
        for name, source in family["sources"].items()
    }
    return sources, groups


class Atlas:
    """Reads and judges the family from clones; keeps the answers that it has read.

    Attributes:
        missing: By what is missing, the rows that are left out.
    """

    def __init__(self, clones: Path, tables: Path, has_texts: bool = False) -> None:
        """Take the folder of the clones and that of the tables."""
        self.clones, self.tables, self.has_texts = clones, tables, has_texts
        self.sources, self.groups = read_family()
        self.missing: dict[str, list[str]] = {}
        self.answers: dict[Group, dict[str, list[Answer]]] = {}

    def judge(self) -> list[AtlasRow]:
        """Read, write and judge every group; name what is missing."""
        rows = []
        for group in self.groups:
            try:
                answers = self._read(group)
            except MissingFileError as error:
                left_out = self.missing.setdefault(str(error), [])
                left_out.append(f"{group.benchmark} ({' → '.join(group.models)})")
                continue
            self.answers[group] = answers
            files = self.write_tables(group, answers)
            rows += judge_tables(group, files)
        return rows

    def _read(self, group: Group) -> dict[str, list[Answer]]:
        commits = self.sources[group.source].commits
        return read_answers(group.benchmark, self.open_clone(group), commits, group.models)

    def open_clone(self, group: Group) -> Clone:
        """Return the clone that holds a group's answers."""
        return Clone(self.clones / group.source, self.sources[group.source].repository)

    def write_tables(
        self, group: Group, answers: Mapping[str, Sequence[Answer]], label: str = ""
    ) -> dict[str, Path]:
        """Write each model's scores; return the files.

        Args:
            group: What is written.
            answers: By model.
            label: Distinguishes further tables of the benchmark.
        """
        folder = self.tables / name_folder(f"{group.benchmark} {label}")
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for model, given in answers.items():
            files[model] = folder / f"{name_file(model)}.csv"
            write_scores(files[model], given, group.cluster, self.has_texts)
        return files

    def judge_again(self, row: AtlasRow, rule: str) -> BenchmarkChange:
        """Judge a row by another rule for reading the same answers."""
        answers = {
            model: [replace(answer, score=answer.other_scores[rule]) for answer in given]
            for model, given in self.answers[row.group].items()
        }
        [judged] = judge_tables(row.group, self.write_tables(row.group, answers, rule))
        return judged.change

    def judge_readable(self, row: AtlasRow) -> BenchmarkChange:
        """Judge a row on the questions to which both models gave an answer that can be read."""
        answers = self.answers[row.group]
        pairs = zip(answers[row.base], answers[row.tuned], strict=True)
        kept = [pair for pair in pairs if pair[0].is_readable and pair[1].is_readable]
        by_model = {row.base: [pair[0] for pair in kept], row.tuned: [pair[1] for pair in kept]}
        [judged] = judge_tables(row.group, self.write_tables(row.group, by_model, "readable"))
        return judged.change


def name_folder(benchmark: str) -> str:
    """Name the folder of a benchmark's tables.

    >>> name_folder("GSM8K, zero-shot")
    'gsm8k_zero-shot'
    """
    return "_".join(benchmark.lower().replace(",", " ").split())


def name_file(model: str) -> str:
    """Name a model's table.

    >>> name_file("GPT-3-6B, fine-tuned")
    'GPT-3-6B_fine-tuned'
    """
    return "_".join(model.replace(",", " ").split())


def write_scores(file: Path, answers: Sequence[Answer], cluster: str, has_texts: bool) -> None:
    """Write a table of scores; with the name of a cluster, also what questions share."""
    columns = ["id", "score", "category", *([cluster] if cluster else [])]
    columns += ["prompt", "answer", "target"] if has_texts else []
    with file.open("w", newline="", encoding="utf-8") as content:
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(columns)
        for answer in answers:
            cells = [answer.id, f"{answer.value:g}", answer.category]
            cells += [answer.cluster] if cluster else []
            cells += [answer.prompt, answer.text, answer.target] if has_texts else []
            writer.writerow(cells)


def judge_tables(group: Group, files: Mapping[str, Path]) -> list[AtlasRow]:
    """Judge a group from its tables: the same steps as `slimdown verdict`, with or without --chain.

    Args:
        group: The models and what their questions share.
        files: By model, the table of its scores.
    """
    clusters = {SCORES: group.cluster} if group.cluster else {}
    evaluations = {model: read_logs(file, clusters=clusters) for model, file in files.items()}
    if not group.is_chain:
        findings = judge(evaluations[group.models[0]], evaluations[group.models[1]])
        return [AtlasRow(group, group.models[0], group.models[1], findings)]
    steps = judge_stages(evaluations).reported
    return [AtlasRow(group, step.before, step.after, step.findings) for step in steps]


def correct_verdicts(rows: Sequence[AtlasRow]) -> list[Verdict]:
    """Return what remains of each verdict after Holm's correction over all rows."""
    changes = [row.change for row in rows]
    decisions = decide_verdicts(
        [change.primary.difference for change in changes], [change.margin for change in changes]
    )
    return [decision.verdict or Verdict.undecided for decision in decisions]


def show_rows(rows: Sequence[AtlasRow]) -> str:
    """Show the page's table: a line for each row."""
    records = []
    for row, corrected in zip(rows, correct_verdicts(rows), strict=True):
        outcome = "holds" if corrected is row.change.verdict else corrected.value
        if row.change.verdict is Verdict.undecided:
            n_to_decide = row.change.n_to_decide
            outcome = f"({format_count(n_to_decide)})" if n_to_decide else "(too many)"
        records.append(describe_row(row) | {"after Holm": outcome})
    return write_table(make_table("", records), "markdown")


def describe_row(row: AtlasRow) -> dict[str, str]:
    """Describe what a row shows by itself, by the page's columns."""
    change = row.change
    n_units = len(change.primary.difference.observations)
    scores = (change.primary.base.value, change.primary.tuned.value)
    return {
        "benchmark": row.group.benchmark,
        "models": row.pair,
        "n": f"{change.n:,}" + (f" ({n_units:,})" if n_units < change.n else ""),
        "score": " → ".join(format_number(100 * score) for score in scores),
        "change [95 %, = 90 %]": join_points(change),
        "verdict": f"{find_style(change.verdict).sign} {change.verdict}",
        "fell, rose": ", ".join(f"{n:,}" for n in row.n_moved),
    }


def show_subjects(rows: Sequence[AtlasRow]) -> str:
    """Show the subjects of the pairs on MMLU-Pro; a star marks a change that is significant."""
    pairs = [row for row in rows if row.group.benchmark == "MMLU-Pro"]
    subjects = sorted({name for row in pairs for name in row.change.subjects})
    records = []
    for name in subjects:
        changes = {row.pair: row.change.subjects[name] for row in pairs}
        record: dict[str, str] = {"subject": name, "n": f"{next(iter(changes.values())).n:,}"}
        for pair, change in changes.items():
            star = "*" if change.p_value < 0.05 else ""
            record[pair] = f"{format_number(100 * change.change, '+.1f')}{star}"
        records.append(record)
    return write_table(make_table("", records), "markdown")


def show_formats(atlas: Atlas, rows: Sequence[AtlasRow]) -> str:
    """Show how many of MMLU-Pro's answers state no letter, and what becomes of them."""
    records = []
    for row in rows:
        if row.group.benchmark != "MMLU-Pro":
            continue
        answers = atlas.answers[row.group]
        pairs = list(zip(answers[row.base], answers[row.tuned], strict=True))
        unreadable = [sum(not pair[side].is_readable for pair in pairs) for side in (0, 1)]
        lost = [after for before, after in pairs if before.value > after.value]
        gained = [before for before, after in pairs if before.value < after.value]
        records.append(
            {
                "models": row.pair,
                "no letter, %": " → ".join(format_number(100 * k / len(pairs)) for k in unreadable),
                "of these cut off, %": " → ".join(show_cut_off(answers[m]) for m in answers),
                "lost, no letter after": count_unreadable(lost),
                "gained, no letter before": count_unreadable(gained),
            }
        )
    return write_table(make_table("", records), "markdown")


def show_rules(atlas: Atlas, rows: Sequence[AtlasRow]) -> str:
    """Show MMLU-Pro's changes by several rules for reading the letter."""
    records = []
    for row in rows:
        if row.group.benchmark == "MMLU-Pro":
            readable = atlas.judge_readable(row)
            records.append(
                {
                    "models": row.pair,
                    "stated letter": join_points(row.change),
                    "else last letter": join_points(atlas.judge_again(row, LAST_LETTER)),
                    "else first letter": join_points(atlas.judge_again(row, FIRST_LETTER)),
                    "both stated one": f"{join_points(readable)}, n {readable.n:,}",
                }
            )
    return write_table(make_table("", records), "markdown")


def show_containment(atlas: Atlas, rows: Sequence[AtlasRow]) -> str:
    """Show InstructGPT's changes by exact match, and by whether the answer holds a reference."""
    records = []
    for row in rows:
        if CONTAINED in atlas.answers[row.group][row.base][0].other_scores:
            record = {"benchmark": row.group.benchmark, "models": row.pair}
            record["exact match"] = join_points(row.change)
            record["holds a reference"] = join_points(atlas.judge_again(row, CONTAINED))
            records.append(record)
    return write_table(make_table("", records), "markdown")


def count_unreadable(answers: Sequence[Answer]) -> str:
    """Say how many answers are without a letter that can be read, out of how many."""
    return f"{sum(not answer.is_readable for answer in answers):,} of {len(answers):,}"


def show_cut_off(answers: Sequence[Answer]) -> str:
    """Show how many percent of the answers without a letter break off within a sentence."""
    texts = [answer.text.rstrip() for answer in answers if not answer.is_readable]
    n_cut = sum(not text.endswith((".", "!", "?", ")", "]", "$")) for text in texts)
    return f"{100 * n_cut / len(texts):.0f}"


def join_points(change: BenchmarkChange) -> str:
    """Show a change with its interval, in points."""
    return " ".join(format_points(change.shown_change))


def show_summary(rows: Sequence[AtlasRow]) -> str:
    """Count the verdicts, and those that hold after Holm's correction over all rows."""
    verdicts = [row.change.verdict for row in rows]
    corrected = correct_verdicts(rows)
    decided = [pair for pair in zip(verdicts, corrected, strict=True) if pair[0] != "undecided"]
    n_kept = sum(before == after for before, after in decided)
    order = (Verdict.forgotten, Verdict.improved, Verdict.retained, Verdict.undecided)
    counts = [f"{verdicts.count(verdict)} {verdict.value}" for verdict in order]
    others = f"{', '.join(counts[:-1])} and {counts[-1]}"
    return (
        f"The {len(rows)} verdicts are {others}. Of the {len(decided)} that decide, {n_kept} hold "
        "after Holm's correction over all rows.\n"
    )


def show_sources(atlas: Atlas) -> str:
    """Show the repositories: at which commit they are read, and what their licence allows."""
    lines = ["| repository | read at | licence | scores of single questions |", "|---|---|---|---|"]
    for source in atlas.sources.values():
        link = f"[{source.repository}](https://github.com/{source.repository})"
        commits = ", ".join(f"`{commit[:7]}`" for commit in source.commits)
        scores = "shipped" if source.shipped else "figures only"
        lines.append(f"| {link} | {commits} | {source.licence} | {scores} |")
    return "\n".join(lines) + "\n"


def show_sections(atlas: Atlas, rows: Sequence[AtlasRow]) -> dict[str, str]:
    """Show all tables of the page, by the name that its markers have."""
    return {
        "summary": show_summary(rows),
        "rows": show_rows(rows),
        "subjects": show_subjects(rows),
        "formats": show_formats(atlas, rows),
        "rules": show_rules(atlas, rows),
        "containment": show_containment(atlas, rows),
        "sources": show_sources(atlas),
    }


def fill_page(text: str, sections: Mapping[str, str]) -> str:
    """Replace what stands between `<!-- atlas: NAME -->` and `<!-- end -->`.

    Raises:
        ValueError: The page lacks a section.
    """
    for name, content in sections.items():
        start, end = f"<!-- atlas: {name} -->\n", "<!-- end -->"
        before, marker, rest = text.partition(start)
        if not marker or end not in rest:
            raise ValueError(f"the page has no place for {name}: {start.strip()} ... {end}")
        text = f"{before}{start}\n{content.strip()}\n\n{rest[rest.index(end) :]}"
    return text


def show_recount(atlas: Atlas, rows: Sequence[AtlasRow]) -> tuple[str, bool]:
    """Count every row again; return what to print, and whether all counts are the same."""
    from bench.atlas_recount import describe_difference, recount

    records, notes, is_alike = [], [""], True
    for row in rows:
        folder, change = atlas.tables / name_folder(row.group.benchmark), row.change
        files = [folder / f"{name_file(model)}.csv" for model in (row.base, row.tuned)]
        found = recount(files[0], files[1], row.group.cluster)
        scores = [change.primary.base.value, change.primary.tuned.value]
        has_same_counts = found.matches([change.n, *scores, *row.n_moved])
        is_alike = is_alike and has_same_counts
        n_reports = len(row.group.models) if row.group.is_chain else 1
        verdict = str(change.verdict)
        if difference := describe_difference(found, verdict, change.margin, n_reports):
            notes.append(f"{row.group.benchmark}, {row.pair}: {difference}.")
        records.append(
            {
                "benchmark": row.group.benchmark,
                "models": row.pair,
                "n": f"{found.n:,}",
                "base": f"{100 * found.base:.1f}",
                "tuned": f"{100 * found.tuned:.1f}",
                "fell, rose": f"{found.fell:,}, {found.rose:,}",
                "same counts": "yes" if has_same_counts else "NO",
                "McNemar, exact": f"{found.mcnemar_p:.2g}",
                "mean, least squares": f"{found.mean_p:.2g}",
                "slimdown": verdict,
                "same side": "no" if difference else "yes",
            }
        )
    table = write_table(make_table("", records), "markdown")
    return table + "\n".join(notes), is_alike


def show_published(atlas: Atlas) -> str:
    """Show the means that two repositories publish of the same answers beside ours."""
    records = []
    for group in atlas.answers:
        clone, commits = atlas.open_clone(group), atlas.sources[group.source].commits
        for model in group.models:
            try:
                published = read_published_mean(group.benchmark, clone, commits, model)
            except MissingFileError as error:
                atlas.missing.setdefault(str(error), []).append("the published means")
                continue
            if published is not None:
                scores = [
                    answer.score for answer in SOURCES[group.benchmark](clone, commits, model)
                ]
                known = [score for score in scores if score is not None]
                records.append(
                    {
                        "benchmark": group.benchmark,
                        "model": model,
                        "published": f"{published:.2f}",
                        "here": f"{100 * sum(known) / len(known):.2f}",
                    }
                )
    return write_table(make_table("", records), "markdown")


def ship_scores(atlas: Atlas, folder: Path) -> int:
    """Write the scores that may be shipped, one Parquet file per model; return their bytes."""
    import pyarrow
    from pyarrow.parquet import write_table as write_parquet

    n_bytes = 0
    for group, answers in atlas.answers.items():
        if not atlas.sources[group.source].shipped:
            continue
        place = folder / name_folder(group.benchmark)
        place.mkdir(parents=True, exist_ok=True)
        for model, given in answers.items():
            columns: dict[str, list[str] | list[int] | list[float]] = {
                "id": [answer.id for answer in given],
                "score": [answer.value for answer in given],
            }
            if all(answer.id.isdecimal() for answer in given):
                columns["id"] = [int(answer.id) for answer in given]
            if any(answer.category for answer in given):
                columns["category"] = [answer.category for answer in given]
            if group.cluster:
                columns[group.cluster] = [int(answer.cluster) for answer in given]
            numbers = [name for name, values in columns.items() if isinstance(values[0], int)]
            file = place / f"{name_file(model)}.parquet"
            write_parquet(
                pyarrow.table(columns),
                file,
                compression="zstd",
                compression_level=19,
                use_dictionary=[name for name in columns if name not in numbers],
                column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
                write_statistics=False,
                store_schema=False,
            )
            n_bytes += file.stat().st_size
    return n_bytes


def name_missing(atlas: Atlas) -> None:
    """Write what is missing, and what is left out for it."""
    for problem, left_out in atlas.missing.items():
        print(f"{problem}\n  left out: {'; '.join(left_out)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or write them; return 1 if a row is missing or recounts otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.atlas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("clones", type=Path, help="the folder with the clones")
    parser.add_argument("--tables", type=Path, help="where tables are written (CLONES/tables)")
    parser.add_argument("--texts", action="store_true", help="questions and answers, too")
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    parser.add_argument("--ship", type=Path, help="write the scores that may be shipped")
    parser.add_argument("--recount", action="store_true", help="count again with statsmodels")
    options = parser.parse_args(argv)
    atlas = Atlas(options.clones, options.tables or options.clones / "tables", options.texts)
    rows = atlas.judge()
    if not rows:
        name_missing(atlas)
        return 1
    if options.ship:
        print(f"{ship_scores(atlas, options.ship):,} bytes in {options.ship}")
    is_alike = True
    if options.recount:
        text, is_alike = show_recount(atlas, rows)
        print(f"{text}\n\n{show_published(atlas)}")
    elif options.page:
        page = fill_page(options.page.read_text(), show_sections(atlas, rows))
        options.page.write_text(page)
    elif not options.ship:
        for name, section in show_sections(atlas, rows).items():
            print(f"{name}\n{section}")
    name_missing(atlas)
    return 0 if is_alike and not atlas.missing else 1


if __name__ == "__main__":
    sys.exit(main())
