"""Write findings as sentences. Each stands only here, for console, page and card."""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from textwrap import shorten

from slimdown.config.benchmark_config import PROMPT_SETTINGS, PaperMetric, Role
from slimdown.config.mitigation import advise_mitigation
from slimdown.evaluation.results import Metric
from slimdown.judging.answer_traits import BITS, RAN_OUT, THINKS, Trait
from slimdown.judging.budgets import BudgetCheck, Gate, Outcome, can_show_budget, overall_outcome
from slimdown.judging.findings import BenchmarkChange, Findings
from slimdown.judging.losses import ChoiceShift
from slimdown.report import formatting
from slimdown.report.formatting import format_number, format_percent, format_points, pluralize
from slimdown.stats.estimates import Estimate
from slimdown.stats.likelihood import ALPHA
from slimdown.training.result import TrainingResult

_SERVED_DIFFERENTLY = "The tuned model is served differently"
_MOST_NAMED = 6  # benchmarks that a sentence on the console names
_MOST_CUT = 0.2  # of answers that ended at the limit of tokens; above, the console warns
_SMALLEST_CAUSE = 0.01  # of the lost answers; causes with a smaller share are not named
FEWEST_RIGHT = 5  # of the base's answers; of fewer no forgetting rate is shown
FEWEST_TO_TELL = 20  # questions; fewer get no number of those that would decide
# By the name in the findings: the name that people read, and what it means.
CAUSES = {
    "other_format": ("other format", "another filter still finds the right answer"),
    "empty": ("empty", "the model wrote nothing"),
    "stopped_early": ("stopped early", "less than half the words of the base's right answer"),
    "wrong_result": ("wrong result", "a full-length answer that does not contain the right one"),
    "nearly_level": ("nearly level", "the right choice is less than 0.1 nats behind"),
    "clearly_behind": ("clearly behind", "another choice leads by 0.1 nats or more"),
}
OUTCOMES = {Outcome.within: "PASSED", Outcome.beyond: "FAILED", Outcome.undecided: "CANNOT TELL"}
# The steps that lessen the loss of a model that another tool trained, or whose weights are not here
ADVICE_ON_LOGS = "slimdown run tuned=ADAPTER 'benchmark=[...]', then slimdown scale RUN"
CORRECTED = "†"  # marks a verdict that does not hold in a table of many runs
HOW_TO_CONFIRM = (
    "To confirm the run you choose on the held-out questions: slimdown compare RUN --confirm"
)
COMPARISON_LEGEND = (
    "Each cell shows the mean change (tuned minus base) with the confidence interval of its "
    "verdict. Over several seeds, both generalise to new questions and new seeds. They are "
    "corrected for all cells of the table (Holm). They assume that seeds are normally "
    "distributed, which is wrong for a training that sometimes collapses. For one seed, both are "
    "those of the run's own report, and † marks a verdict that is undecided once it is corrected "
    "for all cells. More questions reduce the noise of the questions; more seeds reduce the noise "
    "of the training."
)


def describe_losses(training: TrainingResult) -> str:
    """Format the validation loss before and after the training, in nats per token."""
    losses = training.validation_loss_before, training.validation_loss_after
    return " → ".join(format_number(loss, ".3f") for loss in losses)


def mark_target(name: str, role: str) -> str:
    """Add a star to the name of a target task."""
    return f"{name} *" if role == Role.target.value else name


def shorten_metric(metric: str, benchmark: BenchmarkChange) -> str:
    """Return the filter's name if several filters read one metric, else the metric's."""
    name, filter_name = Metric(metric).name, Metric(metric).filter
    n_filters = sum(Metric(m).name == name for m in benchmark.changes)
    return filter_name if n_filters > 1 and filter_name else name


def is_rate_shown(benchmark: BenchmarkChange) -> bool:
    """Whether the base had enough answers right for a forgetting rate to say anything.

    How narrow the rate's interval is must not decide this. Of intervals that are shown only because
    they are narrow, more than 5 % would miss the true rate.
    """
    return benchmark.n * benchmark.primary.base.value >= FEWEST_RIGHT


def describe_paper_metric(benchmark: BenchmarkChange) -> tuple[str, str]:
    """Format the paper's metric of a benchmark.

    Returns:
        The metric, such as "ΔA +0.4 ±0.7" (a standard error) or "FR 33 %", and its interval in
        brackets. Both are empty for a benchmark without such a metric, or without enough right
        answers; the interval alone is empty if the base scores 0, which the first text then says.
    """
    estimate: Estimate | None = benchmark.paper_value
    if benchmark.paper_metric is None or estimate is None:
        return "", ""
    if isnan(estimate.value):  # a forgetting rate divides by the base's score
        return "undefined, the base scores 0", ""
    if benchmark.paper_metric is PaperMetric.forgetting_rate:
        value, interval = format_percent(estimate)
        return (f"FR {value}", interval) if is_rate_shown(benchmark) else ("", "")
    if benchmark.paper_metric is PaperMetric.knowledge_loss:
        spec, symbol, unit = ".1f", "ΔK", " lost"  # a loss is above 0
    else:  # ability augmentation, where a gain is above 0
        spec, symbol, unit = "+.1f", "ΔA", ""
    error = estimate.standard_error
    plus_minus = "" if isnan(error) else f" ±{format_number(error)}"
    interval = formatting.format_interval(estimate.low, estimate.high, spec)
    return f"{symbol} {format_number(estimate.value, spec)}{unit}{plus_minus}", interval


def summarize(findings: Findings) -> Iterator[str]:
    """Write a sentence for each verdict with its benchmarks, and for each undecided benchmark."""
    for verdict in ("improved", "forgotten", "retained"):
        chosen = {n: b for n, b in findings.benchmarks.items() if b.verdict == verdict}
        if not chosen:
            continue
        sentence = f"{verdict.capitalize()}: {_list_changes(chosen)}."
        if verdict == "retained":
            margins = sorted({100 * benchmark.margin for benchmark in chosen.values()})
            points = " or ".join(f"{margin:g}" for margin in margins)
            sentence += f" A change of {points} points or more is ruled out."
        yield sentence
    watched = {n: b for n, b in findings.benchmarks.items() if b.role is Role.watched}
    if watched:
        yield f"Watched, without a verdict: {_list_changes(watched)}."
    yield from explain_undecided(findings)


def _list_changes(benchmarks: Mapping[str, BenchmarkChange]) -> str:
    return ", ".join(f"{name} ({_describe_change(b)})" for name, b in benchmarks.items())


def explain_undecided(findings: Findings) -> Iterator[str]:
    """For each undecided benchmark, say what its questions show and how many would decide.

    Benchmarks that were not measured, because thinking did not end, are left to `list_doubts`.
    """
    for name, benchmark in findings.benchmarks.items():
        if benchmark.verdict != "undecided" or not benchmark.is_measured:
            continue
        questions = pluralize(benchmark.n, "question")
        smallest = benchmark.minimum_detectable_change
        if benchmark.has_nothing_to_lose:
            reason = (
                "Neither model answered a question correctly, so nothing could be lost. More "
                "questions would not help."
            )
        elif benchmark.n < FEWEST_TO_TELL or isnan(smallest):
            reason = f"{questions} are too few for a verdict. Ask at least {FEWEST_TO_TELL}."
        else:
            points = f"{100 * smallest:.1f} points"
            reason = f"{questions} detect a change of {points} in 80 % of cases (power)."
            if needed := benchmark.n_to_decide:
                reason += (
                    f" About {needed:,} would be enough for a verdict if the change stays as large "
                    "as measured."
                )
        yield f"Undecided: {name}. {reason}"


def describe_outcome(gate: Gate) -> str:
    """Write the line that comes first: the outcome of a gate, and the loss that decides it."""
    word = OUTCOMES[gate.outcome]
    budgets_outcome = overall_outcome(gate.checks)  # without the mean of the retained benchmarks
    if gate.mean and gate.outcome is not budgets_outcome:
        # Only the mean makes the gate fail: no single budget is exceeded. In all other cases both
        # outcomes are equal.
        least = f"at least {-100 * gate.mean.high:.1f} points"
        return f"{word}: the retained benchmarks lost {least} on average, and may lose nothing."
    deciding = [check for check in gate.checks if check.outcome is budgets_outcome]
    counts = ""
    if len(gate.checks) > 1:
        # A gate passes only if all budgets do, so "2 of 2" would say nothing new.
        share = f"{len(deciding):,} of " if budgets_outcome is not Outcome.within else ""
        counts = f" ({share}{len(gate.checks):,} budgets)"
    # The loss that is furthest beyond its budget, or nearest to it if all are within. A bound is a
    # change, negative for a loss, so the sum is the room that the budget leaves.
    worst = min(deciding, key=lambda check: check.bound + check.budget)
    return f"{word}{counts}: {_describe_loss(worst)}."


def _describe_loss(check: BudgetCheck) -> str:
    """Say how much a benchmark lost at most, or at least, and what its budget is.

    If these numbers do not explain the outcome, the reason of the check follows the name instead.
    """
    name, change = check.benchmark, check.change
    # The least loss if the budget is exceeded (`Outcome.beyond`), else the largest one.
    loss = -check.bound
    # If the budget is a share of the base's score, that score is uncertain, too. So the outcome may
    # be undecided although the largest loss is within the budget that is shown.
    seems_within = check.outcome is Outcome.undecided and loss <= check.budget
    if seems_within or change.has_no_right_answer or not change.is_measured:
        return f"{name}: {check.reason}"
    budget = f"{100 * check.budget:.3g}"
    if loss <= 0:
        return f"{name} lost nothing; its budget is {budget} points"
    # Take as many decimals as tell the loss from its budget.
    points = (f"{100 * loss:.{digits}f}" for digits in (1, 2, 3))
    lost = next((text for text in points if float(text) != float(budget)), f"{100 * loss:.4f}")
    verbs = {
        Outcome.within: "lost at most",
        Outcome.beyond: "lost at least",
        Outcome.undecided: "may have lost up to",
    }
    return f"{name} {verbs[check.outcome]} {lost} points; its budget is {budget} points"


def summarize_briefly(
    findings: Findings, gate: Gate | None = None, advice: str = "", most: int = 4
) -> list[str]:
    """Write what a console says below the table: full sentences, the most important first.

    Args:
        findings: What the table shows.
        gate: The budgets. If there are any, a benchmark counts as undecided if its budget is, and
            a loss as significant if it makes the gate fail. None: the verdicts count.
        advice: The step that lessens a loss; it is left out if no loss is significant.
        most: The number of sentences. To keep to it, only the less important ones are left out, so
            there may be more.
    """
    is_lost = any(b.verdict == "forgotten" for b in findings.benchmarks.values())
    if gate:
        is_lost = gate.outcome is Outcome.beyond
    # The first sentences and the last one are never left out.
    not_run = list(findings.not_run)
    first = [f"Not measured: {_list_names(not_run)}. The page says why."] if not_run else []
    first += [*describe_cut_answers(findings), *describe_largest_loss(findings)]
    last = [f"Next: {advice}"] if advice and is_lost else []
    middle = [*name_undecided(findings, gate), *list_doubts(findings)]
    middle += [*_name_balanced(findings), *_list_bits(findings)]
    room = max(0, most - len(first) - len(last))
    return [*first, *middle[:room], *last]


def describe_cut_answers(findings: Findings) -> Iterator[str]:
    """Name the benchmarks where so many answers ended at the limit that their scores mislead."""
    cut = list[str]()
    for name, benchmark in findings.benchmarks.items():
        trait = benchmark.find_trait(RAN_OUT)
        if trait and benchmark.max_gen_toks and max(trait.base, trait.tuned) > _MOST_CUT:
            before, after = (f"{100 * share:.0f} %" for share in (trait.base, trait.tuned))
            limit = f"max_gen_toks={benchmark.max_gen_toks}"
            cut.append(f"{name} ({before} before and {after} after, at {limit})")
    if cut:
        yield (
            f"Many answers were cut at the token limit: {_list_names(cut)}. This favours the model "
            "that writes shorter answers. Raise benchmark.NAME.max_gen_toks."
        )


def advise(
    run_id: str,
    findings: Findings,
    *,
    can_scale: bool,
    trains: bool,
    keeps: bool,
    gate: Gate | None = None,
) -> str:
    """Name the one step that lessens a run's loss: a command, or what to do.

    Args:
        run_id: The run's id in the record.
        findings: What the run lost.
        can_scale: Whether `slimdown scale` can shrink the effect of what was trained.
        trains: Whether the run trained the model, and did not only measure it.
        keeps: Whether the run had a mitigation.
        gate: The budgets, of which the smallest counts. None: the budget is 2 points.
    """
    smallest = min((check.budget for check in gate.checks), default=0.02) if gate else 0.02
    budgets = [smallest]
    if not trains:  # scaling is the only way to lose less, and a small budget may be unprovable
        budgets += [larger for larger in (0.05, 0.1, 0.2) if larger > smallest]
    provable = [budget for budget in budgets if can_show_budget(findings, budget)]
    if can_scale and provable:
        is_raised = provable[0] > smallest
        reason = "  # the smallest budget that these questions can prove" if is_raised else ""
        return f"slimdown scale {run_id[:8]} --max-loss {provable[0]:g}{reason}"
    if trains:  # the next training can lose less
        mitigation = "" if keeps else advise_mitigation()  # empty if none is advised
        return f"run the same command with {mitigation or 'train.stop_on_forgetting=true'}"
    if provable:  # but the model cannot be scaled, for example because a server answers
        return ADVICE_ON_LOGS
    most = f"{100 * budgets[-1]:.3g} points"
    return f"ask more questions. These are too few to prove that a loss is at most {most}."


def describe_largest_loss(findings: Findings) -> list[str]:
    """Count the lost answers of the largest significant loss by cause; nothing without a loss."""
    falls = {
        name: findings.benchmarks[name].primary.difference.value
        for name, losses in findings.lost_answers.items()
        if losses.is_loss_shown and losses.n_lost
    }
    if not falls:
        return []
    name = min(falls, key=falls.__getitem__)  # the change that is furthest below 0
    losses = findings.lost_answers[name]
    named = [cause for cause in losses.causes if cause.share >= _SMALLEST_CAUSE]
    causes = sorted(named, key=lambda cause: -cause.count)
    if not causes:  # the answers do not tell them
        return []
    counts = ", ".join(f"{cause.count:,} {CAUSES[cause.name][0]}" for cause in causes)
    return [f"Lost in {name} ({pluralize(losses.n_lost, 'answer')}): {counts}."]


def name_undecided(findings: Findings, gate: Gate | None = None) -> Iterator[str]:
    """Name the undecided benchmarks, and how many questions each would need: a sentence or two.

    Args:
        findings: What was found.
        gate: The budgets. If there are any, a benchmark counts as undecided if its budget is.
            None: its verdict counts.
    """
    needed = _count_needed(findings, gate)
    n_asked = {name: findings.benchmarks[name].n for name in needed}
    too_small = [name for name in needed if n_asked[name] < FEWEST_TO_TELL]
    large_enough = {name: n for name, n in needed.items() if name not in too_small}
    if large_enough:
        changes = [findings.benchmarks[name].primary.difference.value for name in large_enough]
        # PASSED or FAILED: what so many questions would show of each budget.
        expected = {check.benchmark: check.expected for check in gate.checks} if gate else {}
        yield _say_what_would_decide(large_enough, n_asked, expected, has_changed=any(changes))
    if too_small:
        counted = [f"{name} ({n_asked[name]})" for name in too_small]
        purpose = "to check the budget" if gate else "for a verdict"
        yield (
            f"Too few questions {purpose}: {_list_names(counted)}. Ask at least {FEWEST_TO_TELL}."
        )


def _count_needed(findings: Findings, gate: Gate | None) -> dict[str, int | None]:
    """Return how many questions would decide each benchmark that is undecided.

    A benchmark is left out if more questions would not help, because no answer was right or too
    much thinking did not end. `list_doubts` names these.

    Args:
        findings: What was found.
        gate: The budgets, which are to be decided. None: the verdicts are.

    Returns:
        The numbers by benchmark; None if a number cannot be estimated.
    """
    if gate:
        open_checks = [check for check in gate.checks if check.outcome is Outcome.undecided]
        needed = {
            check.benchmark: check.n_to_decide
            for check in open_checks
            if not check.change.has_no_right_answer
        }
    else:
        needed = {
            name: benchmark.n_to_decide
            for name, benchmark in findings.benchmarks.items()
            if benchmark.verdict == "undecided"
            # A target may rise from 0, but nothing can be lost where the base had none right.
            and (benchmark.role is Role.target or benchmark.primary.base.value)
        }
    return {name: n for name, n in needed.items() if findings.benchmarks[name].is_measured}


def _say_what_would_decide(
    needed: Mapping[str, int | None],
    n_asked: Mapping[str, int],
    expected: Mapping[str, str],
    has_changed: bool,
) -> str:
    """Say how many questions each undecided benchmark needs.

    For example: "Undecided: a and b. If the changes stay as large as measured, a needs about 244
    questions and b about 1,800 for a verdict. Each has 200 now." Or of a single budget: "Budget not
    decided: a. About 244 questions instead of 200 would be enough for PASSED if nothing is lost."

    Args:
        needed: How many questions would decide, by benchmark; None if that cannot be estimated.
        n_asked: How many questions were asked, by benchmark; it may hold further benchmarks.
        expected: "PASSED" or "FAILED" by benchmark, the outcome of its budget if its change stays
            as large as measured; it may hold further benchmarks. Empty if no budgets but verdicts
            are undecided.
        has_changed: Whether the score of any of these benchmarks changed. If not, the sentence
            supposes that none will, instead of a change that stays.
    """
    subject, limit = ("Budget not decided", "budget") if expected else ("Undecided", "margin")
    opening = f"{subject}: {_list_names([*needed])}."
    known = [(name, n) for name, n in needed.items() if n]
    if not known:
        return f"{opening} No number of questions can be named so near to the {limit}."
    if has_changed:
        stays = "change stays" if len(needed) == 1 else "changes stay"
        condition = f"if the {stays} as large as measured"
    else:
        condition = "if nothing is lost" if expected else "if nothing changes"
    if len(needed) == 1:
        [(name, n)] = known
        goal = f"for {expected[name]}" if expected else "for a verdict"
        number = f"{n:,} questions instead of {n_asked[name]:,}"
        return f"{opening} About {number} would be enough {goal} {condition}."
    # If all benchmarks have as many questions now, one sentence at the end names the number.
    numbers_asked = {n_asked[name] for name in needed}
    are_equal = len(numbers_asked) == 1
    now = f" Each has {max(numbers_asked):,} now." if are_equal else ""
    needs = list[str]()
    known.sort(key=lambda pair: pair[1])  # the fewest questions first
    for name, n in known[:_MOST_NAMED]:
        # Only the first benchmark gets the verb and the noun.
        number = f"about {n:,}" if needs else f"needs about {n:,} questions"
        instead = "" if are_equal else f" instead of {n_asked[name]:,}"
        own_goal = f" for {expected[name]}" if expected else ""
        needs.append(f"{name} {number}{instead}{own_goal}")
    # What all benchmarks need questions for is said once, behind the last.
    shared_goal = "" if expected else " for a verdict"
    return f"{opening} {condition.capitalize()}, {_list_names(needs)}{shared_goal}.{now}"


def _list_names(names: Sequence[str]) -> str:
    """Join names as a sentence does; of many, the first ones and how many there are more."""
    if len(names) > _MOST_NAMED:
        names = [*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED:,} more (--all)"]
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _name_balanced(findings: Findings) -> list[str]:
    """Name the benchmarks that show no change, although answers were lost and gained."""
    balanced = list[str]()
    for name, benchmark in findings.benchmarks.items():
        counts = benchmark.primary.counts  # None where scores are not 0 or 1
        if counts and counts.lost == counts.gained > 0:
            balanced.append(f"{name} ({counts.lost:,})")
    return [f"As many answers were gained as lost: {_list_names(balanced)}."] if balanced else []


def _describe_change(benchmark: BenchmarkChange) -> str:
    """Format the primary change, with the number of questions if these stopped early."""
    points = f"{format_points(benchmark.primary.difference)[0]} points"
    n = formatting.format_count(benchmark.n, benchmark.n_available)
    return f"{points} after {n} questions" if benchmark.is_stopped else points


def describe_overall(mean: Estimate) -> str:
    """Say whether the retained benchmarks are worse together.

    If nothing has changed, the chance that it says "worse" is at most 2.5 %.

    Args:
        mean: The mean change of the retained benchmarks, with its 95 % interval.
    """
    answer = "worse" if mean.high < 0 else "better" if mean.low > 0 else "undecided"
    change = " ".join(format_points(mean))
    return f"Overall: {answer}. The retained benchmarks changed by {change} points on average."


def describe_bits(bits_per_byte: Trait) -> str:
    """Write the bits per byte of texts before and after, with the change in percent.

    For example: "1.000 → 1.080 (+8.0 % [+6.9, +9.1])". The interval is left out if it is unknown.

    Args:
        bits_per_byte: The trait `BITS` of a benchmark.
    """
    base, tuned = bits_per_byte.base, bits_per_byte.tuned
    change = format_number(100 * (tuned / base - 1), "+.1f") if base else "–"
    bits = f"{format_number(base, '.3f')} → {format_number(tuned, '.3f')}"
    if isnan(bits_per_byte.low) or not base:
        return f"{bits} ({change} %)"
    # The trait has the interval of the change in bits; here it is a share of the base's bits.
    low, high = (100 * end / base for end in (bits_per_byte.low, bits_per_byte.high))
    return f"{bits} ({change} % {formatting.format_interval(low, high, '+.1f')})"


def _list_bits(findings: Findings) -> list[str]:
    """Write a sentence on the bits per byte of all benchmarks of texts; nothing if none is one."""
    described = list[str]()
    for name, benchmark in findings.benchmarks.items():
        if bits := benchmark.find_trait(BITS):
            described.append(f"{name} {describe_bits(bits)}")
    return [f"Bits per byte of text: {'; '.join(described)}."] if described else []


def describe_texts(findings: Findings) -> Iterator[str]:
    """Say how well both models predict texts, in bits per byte, and why there is no verdict."""
    for bits in _list_bits(findings):
        condition = ""
        if "[" in bits:  # an interval is shown
            condition = "The interval assumes that no rare text hides a large change. "
        reason = (
            "There is no verdict, because a text can become less likely without a loss of ability."
        )
        yield f"{bits} {condition}{reason}"


def list_doubts(findings: Findings) -> Iterator[str]:
    """List reasons to trust the findings less or to measure again, one sentence each."""
    for name, benchmark in findings.benchmarks.items():
        if shares := benchmark.never_ended:  # None unless one of them is too large
            base, tuned = (f"{100 * share:.0f} %" for share in shares)
            yield (
                f"{name}: the thinking did not end within the token limit in {base} of the answers "
                f"before and {tuned} after. Raise benchmark.{name}.max_gen_toks."
            )
    yield from _describe_zero_scores(findings)
    # Tables without prompts have a condition "NAME.prompts" for each of their benchmarks.
    conditions = findings.conditions.items()
    if unlogged := [key for key, value in conditions if value == "not logged"]:
        names = ", ".join(key.removesuffix(".prompts") for key in unlogged)
        owner = "" if len(unlogged) == len(findings.benchmarks) else f" of {names}"
        yield (
            f"The tables{owner} contain no prompts, so it is unknown whether both models were "
            "asked in the same way."
        )
    if findings.training and findings.training.stopped:
        yield f"The training stopped early: {findings.training.stopped}."
    for name, reason in findings.not_run.items():
        yield f"Not measured: {name} ({' '.join(reason.split())})."  # the reason on one line


def _describe_zero_scores(findings: Findings) -> Iterator[str]:
    """Warn of retained benchmarks on which the base scores 0, in one sentence, and advise.

    Nothing is yielded if there are none.
    """
    names = list[str]()
    hint = ""
    for name, benchmark in findings.benchmarks.items():
        if benchmark.role is Role.retained and not benchmark.primary.base.value:
            names.append(name)
            # The score "exact" of question files fails sentences that contain the right answer.
            if benchmark.metric == "exact_match.strip" and not hint:  # one example is enough
                hint = f" If they are sentences, set benchmark.{name}.score=contains."
    if names:
        yield (
            f"No question of {_list_names(names)} was answered correctly before, so a loss there "
            f"cannot be measured. Read the answers to see why.{hint}"
        )


def describe_noise(findings: Findings) -> Iterator[str]:
    """If both logs are from the same model, say how many answers flip, and what that means.

    The weights cannot be the cause then, so the flips show the noise of the engine. Nothing is said
    of logs that do not name their model.

    Args:
        findings: With both evaluations, as `judge` returns them.
    """
    base, tuned = findings.base, findings.tuned
    if not (base and tuned and base.model and base.model == tuned.model):
        return
    benchmarks = findings.benchmarks
    n_flips = {name: int(sum(b.primary.difference.changes != 0)) for name, b in benchmarks.items()}
    same = f"Both logs are from the same model, {base.model}"
    if not any(n_flips.values()):
        yield (
            f"{same}, and no answer flips. So if answers of a tuned model flip, its weights are "
            "the cause."
        )
        return
    flips = [f"{n_flips[name]:,} of {b.n:,} in {name}" for name, b in benchmarks.items()]
    yield f"{same}, but answers flip: {', '.join(flips)}."
    significant = list[str]()  # how large the changes of some benchmarks may be
    hidden = list[str]()  # below what size a true change may go unnoticed on others
    for name, benchmark in benchmarks.items():
        change = benchmark.shown_change
        least = benchmark.minimum_detectable_change
        if benchmark.verdict in ("forgotten", "improved"):
            largest = max(-change.low, change.high)  # a fall or a rise
            significant.append(f"{100 * largest:.1f} points in {name}")
        elif n_flips[name] and benchmark.n >= FEWEST_TO_TELL and not isnan(least):
            hidden.append(f"{100 * least:.1f} points in {name}")
    if significant:
        yield (
            "More answers flip in one direction than chance explains. So the engine alone may "
            f"change a tuned model's score by up to {', '.join(significant)}. Make both logs "
            "with the same versions, precision and batch size."
        )
    elif hidden:
        yield (
            "Such flips go in both directions, and the verdict takes them into account: by "
            "themselves they lead to a false claim in at most 5 % of cases. But a true change "
            f"below {', '.join(hidden)} may go unnoticed."
        )


def list_caveats(findings: Findings) -> Iterator[str]:
    """List the caveats that apply to these findings, one sentence each."""
    yield from describe_noise(findings)
    yield from describe_cut_answers(findings)
    yield from describe_texts(findings)
    yield from list_doubts(findings)
    if findings.part:
        yield f"Questions: {findings.part}."
    yield from describe_serving(findings)
    yield from describe_prompts(findings)
    if stopped := [name for name, b in findings.benchmarks.items() if b.is_stopped]:
        yield (
            f"Stopped early: {', '.join(stopped)}. The verdict is valid, but the measured change "
            "is likely too large."
        )
    for name, benchmark in findings.benchmarks.items():
        yield from describe_answers(name, benchmark)
        yield from describe_sampling(name, benchmark)
    evaluations = findings.base.benchmarks.values() if findings.base else ()
    for origin in dict.fromkeys(e.origin for e in evaluations if e.origin):  # each once
        yield f"The base model's answers come from an earlier measurement: {origin}."


def describe_prompts(findings: Findings) -> Iterator[str]:
    """Say how prompts were made and answers ended, in a sentence for each such setting."""
    benchmarks_by_setting = dict[str, list[str]]()  # by setting with its value: "stop=['.']"
    for key, value in findings.conditions.items():
        name, _, setting = key.partition(".")  # other conditions have no setting, and are left out
        benchmarks_by_setting.setdefault(f"{setting}={value}", []).append(name)
    for setting, names in benchmarks_by_setting.items():
        if setting.startswith((*PROMPT_SETTINGS, "stop", "temperature")):
            yield f"Asked with {shorten(setting, 160, placeholder='…')}: {', '.join(names)}."


def describe_answers(name: str, benchmark: BenchmarkChange) -> Iterator[str]:
    """Say where a benchmark's answers think or refuse otherwise than before."""
    trait = benchmark.find_trait(THINKS)
    if trait and not trait.low <= 0 <= trait.high:  # the interval of its change excludes 0
        before, after = (f"{100 * share:.0f} %" for share in (trait.base, trait.tuned))
        yield f"{name}: {before} of the answers contain thinking before, and {after} after."
    if benchmark.metric != "refusal":
        return
    # The subjects of a refusal benchmark are harmful and harmless requests.
    for subject, change in benchmark.subjects.items():
        before, after = (f"{100 * share:.0f} %" for share in (change.base, change.tuned))
        shown = "significant" if change.p_value < ALPHA else "not significant"
        scores = f"of the {change.n} {subject}, {before} are right before and {after} after"
        yield f"{name}: {scores}. The difference is {shown}."


def describe_sampling(name: str, benchmark: BenchmarkChange) -> Iterator[str]:
    """Say if some questions of a benchmark count as one, or if its verdict is for its subjects."""
    difference = benchmark.primary.difference
    if difference.sampling.clusters is not None:
        counted = f"{difference.n:,} questions, {len(difference.observations):,} of them distinct"
        yield f"{name}: {counted}. Copies of a question, and questions of one cluster, count once."
    if n_subjects := difference.sampling.n_subjects:
        yield f"{name}: the verdict holds for these {n_subjects} subjects only."


def describe_serving(findings: Findings) -> Iterator[str]:
    """Say which server answered as the tuned model, and how it is served otherwise than the base.

    Each takes a sentence, where there is something to say.
    """
    if findings.served_by:
        yield (
            f"The tuned model was asked through {findings.served_by}, the base model by "
            "transformers. Both got the same messages. The change includes what the server's "
            "engine and chat template change."
        )
    if findings.serving:
        differences = "; ".join(findings.serving)
        compared = "Compared with the base model" if findings.served_by else _SERVED_DIFFERENTLY
        yield f"{compared}: {differences}."


def describe_lost_answers(findings: Findings) -> Iterator[str]:
    """Say of each benchmark whose loss is significant why its answers were lost.

    Of choices it also says which position the model now prefers, if it is shown to prefer one.
    """
    for name, losses in findings.lost_answers.items():
        if losses.is_loss_shown and losses.n_lost:
            causes = [cause for cause in losses.causes if cause.share >= _SMALLEST_CAUSE]
            shares = [f"{100 * cause.share:.0f} % {CAUSES[cause.name][0]}" for cause in causes]
            n_lost = pluralize(losses.n_lost, "answer")
            yield f"Of {n_lost} lost in {name}: {', '.join(shares) or 'causes unknown'}."
            if losses.choices and losses.choices.collapsed:
                yield f"{name}: {describe_position(losses.choices)}"


def describe_position(choices: ChoiceShift) -> str:
    """Say which position the tuned model prefers, and whether it is shown to have moved there."""
    if choices.collapsed:
        opening = "The tuned model moved to choice"
    else:
        opening = "No significant shift to one position. The most frequent choice is"
    letter = chr(ord("A") + choices.position)
    parts = (choices.share_before, choices.share_after, choices.share_right)
    before, after, right = (f"{100 * share:.0f} %" for share in parts)
    shares = f"{before} of all questions before, {after} after. It is the right answer in {right}."
    return f"{opening} {letter}: {shares}"


def describe_training(training: TrainingResult) -> Iterator[str]:
    """Describe the training: the validation loss, the trained share, rows that were cut."""
    losses, steps = describe_losses(training), pluralize(training.steps, "step")
    share = f"{training.n_trainable:,} parameters trained ({training.trainable_percent:.2f} %)"
    yield f"Validation loss {losses}, {steps}, {share}."
    if training.n_truncated:
        n_cut = pluralize(training.n_truncated, "row")
        yield f"Cut, because they are longer than train.max_length: {n_cut}."
    if training.n_untrained:
        yield f"{pluralize(training.n_untrained, 'row')} had no token left to train on."


def describe_findings(
    findings: Findings, with_verdicts: bool = True, gate: Gate | None = None
) -> list[str]:
    """Write all sentences of findings: budgets, verdicts, lost answers, training, caveats.

    Args:
        findings: What is described.
        with_verdicts: False leaves out what a table above the sentences shows.
        gate: The budgets; None if there are none.
    """
    budgets = describe_budgets(gate) if gate else ()
    verdicts = summarize(findings) if with_verdicts else explain_undecided(findings)
    training = describe_training(findings.training) if findings.training else ()
    lost = describe_lost_answers(findings)
    return [*budgets, *verdicts, *lost, *training, *list_caveats(findings)]


def describe_budgets(gate: Gate) -> Iterator[str]:
    """Say for each budget of a gate its outcome and why, and how the retained benchmarks changed.

    The mean of the retained benchmarks is named if the gate takes it (`--overall`).
    """
    for check in gate.checks:
        word, budget = OUTCOMES[check.outcome].lower(), f"{100 * check.budget:.3g} points"
        yield f"{check.benchmark} (budget: {budget}): {word}, because {check.reason}."
    if len(gate.checks) > 1:
        yield (
            "Each budget has a one-sided test of its own, at 95 % confidence. FAILED is corrected "
            "for the number of budgets. PASSED needs no correction, because all have to pass."
        )
    if gate.mean:
        yield describe_overall(gate.mean)


def explain_table(findings: Findings) -> str:
    """Write the legend of a table of findings: sentences on what this table shows."""
    roles = [b.role for b in findings.benchmarks.values()]
    n_verdicts = sum(role is not Role.watched for role in roles)
    has_retained = any(b.verdict == "retained" for b in findings.benchmarks.values())
    level = "at least 95 % (90 % if the verdict is retained)" if has_retained else "at least 95 %"
    sentences = [f"Changes are in percentage points, with confidence intervals of {level}."]
    if Role.target in roles:
        sentences.append("A star (*) marks a target benchmark.")
    if Role.watched in roles:
        sentences.append("A watched benchmark has no verdict.")
    if n_verdicts > 1:
        sentences.append(
            f"Verdicts are corrected for {n_verdicts} benchmarks (Holm), and the intervals are "
            "widened to agree with them."
        )
        if any(len(benchmark.changes) > 1 for benchmark in findings.benchmarks.values()):
            sentences.append("Further metrics have no verdict, so their intervals are not widened.")
    return " ".join(sentences)
