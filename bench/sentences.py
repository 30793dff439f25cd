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
        ("60 questions show a change of 7.3 points at 80 % power", "the least change is shown"),
        ("if the change is as it looks, about 244 would decide", "about N questions decide, of 80"),
    ),
    "name_undecided": (("About 244 questions would decide", "about N questions decide, of 80"),),
    "describe_outcome": (
        ("PASSED: X lost 1.2 points at most; it may lose 2", "budget kept (exit 0)"),
        ("FAILED: X lost 3.1 points or more; it may lose 2", "budget exceeded (exit 1)"),
        ("the retained benchmarks lost 1.0 points or more on average", "worse"),
    ),
    "describe_budgets": (
        ("one-sided at 95 %, it lost at most 1.2 points", "budget kept (exit 0)"),
        ("one-sided at 97.5 %, it lost at least 3.1 points", "budget exceeded (exit 1)"),
        ("about 244 would tell on which side its loss lies", "about N questions decide, of 80"),
    ),
    "summarize_briefly": (("the sentences of other functions", NOT_A_CLAIM + "it only joins"),),
    "describe_findings": (("the sentences of other functions", NOT_A_CLAIM + "it only joins"),),
    "describe_overall": (("Overall: worse, better, undecided", "worse"),),
    "describe_bits": (("1.000 → 1.080 (+8.0 % [+6.9, +9.1])", "bits' interval misses"),),
    "describe_texts": (("Bits a byte of text: ...", "bits' interval misses"),),
    "describe_paper_metric": (
        ("FR 12.0 % [2.0, 21.0]", "rate's interval misses"),
        ("ΔA +0.4 ±0.7", NOT_A_CLAIM + "the paper's own formula, of independent measurements"),
    ),
    "describe_noise": (
        ("a change of up to 2.1 points may be the engine's", "more is the engine's"),
        ("Such flips alone show a change in 5 % of cases at most", "changed"),
        ("a true one below 7.3 points may go unseen", "the least change is shown"),
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
        ("Answers were cut at their limit in X", NOT_A_CLAIM + "what was measured"),
    ),
    "describe_answers": (
        ("12 % of the base's answers think, 80 % of the tuned model's", "trait's interval misses"),
        ("right in 90 % of 50 harmful before, in 20 % after; shown to differ", "a subject changed"),
        ("12 % of the base's answers ended at max_gen_toks=40", NOT_A_CLAIM + "what was measured"),
    ),
    "describe_sampling": (
        ("12,032 questions, 11,642 of them distinct", NOT_A_CLAIM + "a count"),
        ("X is about these 57 subjects alone", NOT_A_CLAIM + "it limits the claims"),
    ),
    "list_caveats": (
        ("X stopped early: the estimate is likely too large", "early estimate too large by (%)"),
    ),
    "list_doubts": (
        ("the base has none right, so nothing can be lost", NOT_A_CLAIM + "what was measured"),
    ),
    "describe_losses": (("1.900 → 1.783", NOT_A_CLAIM + "the loss on these held-out rows"),),
    "describe_training": (
        ("Validation loss 1.900 → 1.783, 50 steps", NOT_A_CLAIM + "what was measured"),
    ),
    "describe_serving": (("As it is served: ...", NOT_A_CLAIM + "settings"),),
    "describe_prompts": (("Asked with ...", NOT_A_CLAIM + "settings"),),
    "explain_table": (
        ("an interval of at least 95 %; of 90 % at =, retained", "shown interval misses"),
        ("verdicts corrected for 4 benchmarks", "changed, of 4 benchmarks"),
    ),
    "advise": (
        ("Next: slimdown scale RUN --max-loss 0.02", NOT_A_CLAIM + "advice; `can_show_budget`"),
        ("these can show no loss to be within 2 points", NOT_A_CLAIM + "the test's own arithmetic"),
    ),
    # of `slimdown compare`, of scales, of stages and of searches
    "describe_claims": (
        ("A lies 3.1 points above B on gsm8k (corrected p = .01)", "values differ"),
    ),
    "describe_choice": (
        ("Take step 24: its targets rose most", NOT_A_CLAIM + "as measured; it names no loss"),
        ("whose losses are within their budgets so far", "chosen checkpoint over, exit 0"),
    ),
    "comparison_table": (
        ("−3.0 [−4.1, −1.8] forgotten, over seeds", "changed over seeds"),
        ("its interval", "intervals over seeds"),
        ("forgotten → undecided †", "forgotten"),
        ("noise of questions, of training", NOT_A_CLAIM + "standard errors, named as such"),
    ),
    "scales_table": (
        ("The intervals of a benchmark hold for all scales at once", "any scale's interval misses"),
    ),
    "search_table": (
        ("3 of 9 finished trials are within the budget as measured", NOT_A_CLAIM + "as measured"),
    ),
    "stages_table": (("X fell at q4 (−2.0 [−3.1, −0.8])", "changed"),),
    "explain_looks": (("each may pass by luck, in 5 % of cases", "budget kept (exit 0)"),),
    "choose_scale": (("PASSED, of the chosen scale", "scale over its budget"),),
    "judge_look": (("X lost 2.7 points or more (2 allowed)", "a look ends a training"),),
    "report.html.j2": (
        (
            "subjects with p below 0.05: one in twenty is luck",
            "marked subjects that did not change",
        ),
        ("traits with their intervals, not corrected", "trait's interval misses"),
    ),
    "README and studies": (
        ("it learned 95 to 99 % as much", NOT_A_CLAIM + "ratios of measured losses, by seed"),
    ),
}
