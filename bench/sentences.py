"""Every sentence that slimdown prints about numbers, and what holds it.

`python -m bench.statistics` prints this list behind its rows. A sentence is a claim, which one of
these rows counts, or it is not a claim, for the reason that stands beside it.
"""

NOT_A_CLAIM = "not a claim: "

# By the function that writes it: the sentence, and the row or the reason.
SENTENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "summarize": (
        ("Improved, Forgotten: X (+2.0 points)", "changed"),
        ("Retained: X; a change of 2 points or more is ruled out", "retained"),
        ("Watched, without a verdict: X (+2.0 points)", NOT_A_CLAIM + "what was measured"),
    ),
    "explain_undecided": (
        (
            "60 questions detect a change of 7.3 points in 80 % of cases",
            "the least change is shown",
        ),
        ("about 244 would be enough for a verdict", "about N questions decide, of 80"),
    ),
    "name_undecided": (("About 244 questions would be enough", "about N questions decide, of 80"),),
    "describe_outcome": (
        ("PASSED: X lost at most 1.2 points; its budget is 2 points", "budget kept (exit 0)"),
        ("FAILED: X lost at least 3.1 points; its budget is 2 points", "budget exceeded (exit 1)"),
        ("the retained benchmarks lost at least 1.0 points on average", "worse"),
    ),
    "describe_budgets": (
        ("it lost at most 1.2 points (one-sided, 95 % confidence)", "budget kept (exit 0)"),
        ("it lost at least 3.1 points (one-sided, 97.5 % confidence)", "budget exceeded (exit 1)"),
        ("about 244 questions would be enough for FAILED", "about N questions decide, of 80"),
        ("each budget's own test at 95 % confidence; all have to pass", "budget kept (exit 0)"),
        ("a proven FAILED is corrected for the number of budgets", "budget exceeded (exit 1)"),
    ),
    "summarize_briefly": (("the sentences of other functions", NOT_A_CLAIM + "it only joins"),),
    "describe_findings": (("the sentences of other functions", NOT_A_CLAIM + "it only joins"),),
    "describe_overall": (("Overall: worse, better, undecided", "worse"),),
    "describe_bits": (("1.000 → 1.080 (+8.0 % [+6.9, +9.1])", "bits' interval misses"),),
    "describe_texts": (("Bits per byte of text: ...", "bits' interval misses"),),
    "describe_paper_metric": (
        ("FR 12.0 % [2.0, 21.0]", "rate's interval misses"),
        ("ΔA +0.4 ±0.7", NOT_A_CLAIM + "the paper's own formula, of independent measurements"),
    ),
    "describe_noise": (
        ("the engine alone may change a score by up to 2.1 points", "more is the engine's"),
        ("by themselves they lead to a false claim in at most 5 % of cases", "changed"),
        ("a true change below 7.3 points may go unnoticed", "the least change is shown"),
    ),
    "describe_largest_loss": (
        (
            "Lost in X (40 answers): 20 wrong result",
            NOT_A_CLAIM + "counts, of a loss that is shown",
        ),
    ),
    "describe_lost_answers": (
        ("Of 40 answers lost in X: 50 % wrong result", NOT_A_CLAIM + "shares of a shown loss"),
    ),
    "describe_position": (("The tuned model moved to choice C", "moved to one choice"),),
    "describe_cut_answers": (
        (
            "Many answers were cut at the token limit: X (12 % before and 40 % after)",
            NOT_A_CLAIM + "what was measured",
        ),
    ),
    "describe_answers": (
        ("12 % of the answers contain thinking before, and 40 % after", "trait's interval misses"),
        (
            "of the 50 questions to refuse, 90 % are right before and 20 % after",
            "a subject changed",
        ),
    ),
    "describe_sampling": (
        ("12,032 questions, 11,642 of them distinct", NOT_A_CLAIM + "a count"),
        ("X: the verdict holds for these 57 subjects only", NOT_A_CLAIM + "it limits the claims"),
    ),
    "list_caveats": (
        (
            "Stopped early: X. The measured change is likely too large",
            "early estimate too large by (%)",
        ),
    ),
    "list_doubts": (
        ("no question was answered correctly before", NOT_A_CLAIM + "what was measured"),
        ("the thinking did not end within the token limit", NOT_A_CLAIM + "what was measured"),
    ),
    "describe_losses": (("1.900 → 1.783", NOT_A_CLAIM + "the loss on these held-out rows"),),
    "describe_training": (
        ("Validation loss 1.900 → 1.783, 50 steps", NOT_A_CLAIM + "what was measured"),
    ),
    "describe_serving": (("The tuned model is served differently: ...", NOT_A_CLAIM + "settings"),),
    "describe_prompts": (("Asked with ...", NOT_A_CLAIM + "settings"),),
    "explain_table": (
        ("confidence intervals of at least 95 % (90 % for retained)", "shown interval misses"),
        ("Verdicts are corrected for 4 benchmarks (Holm), and", "changed, of 4 benchmarks"),
        ("Further metrics have no verdict", NOT_A_CLAIM + "it says what is not claimed"),
    ),
    "advise": (
        ("Next: slimdown scale RUN --max-loss 0.02", NOT_A_CLAIM + "advice; `can_show_budget`"),
        (
            "too few to prove that a loss is at most 2 points",
            NOT_A_CLAIM + "the test's own arithmetic",
        ),
    ),
    # of `slimdown compare`, of scales, of stages and of searches
    "describe_claims": (
        ("A is 3.1 points above B on gsm8k (corrected p = .01)", "values differ"),
        ("No difference is significant (smallest corrected p = .08)", "values differ"),
    ),
    "describe_choice": (
        ("Take step 24: its targets improved most", NOT_A_CLAIM + "as measured; it names no loss"),
        ("whose measured losses are within their budgets", "chosen checkpoint over, exit 0"),
    ),
    "comparison_table": (
        ("−3.0 [−4.1, −1.8] forgotten, over seeds", "changed over seeds"),
        ("its interval", "intervals over seeds"),
        ("forgotten → undecided †", "forgotten"),
        ("noise of questions, of training", NOT_A_CLAIM + "standard errors, named as such"),
    ),
    "scales_table": (
        (
            "The confidence intervals of a benchmark hold for all scales at once",
            "any scale's interval misses",
        ),
    ),
    "search_table": (
        ("3 of 9 finished trials are within the budget as measured", NOT_A_CLAIM + "as measured"),
    ),
    "stages_table": (("X fell at stage q4 (−2.0 [−3.1, −0.8])", "changed"),),
    "explain_looks": (("each of them may pass by chance in 5 % of cases", "budget kept (exit 0)"),),
    "choose_scale": (("PASSED, of the chosen scale", "scale over its budget"),),
    "judge_look": (("X lost at least 2.7 points (its budget is 2)", "a look ends a training"),),
    "report.html.j2": (
        (
            "subjects with p below 0.05: at most one in twenty is chance",
            "marked subjects that did not change",
        ),
        ("traits with their intervals, not corrected", "trait's interval misses"),
    ),
    "README and studies": (
        ("it learned 95 to 99 % as much", NOT_A_CLAIM + "ratios of measured losses, by seed"),
    ),
}
