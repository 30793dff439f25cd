"""The tags of a run: what is known of it besides its numbers."""

from enum import StrEnum


class Tag(StrEnum):
    """A tag of a run. One that ends in a dot is followed by a benchmark's name or an evaluation's key."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> "Tag":
        """The tag's name, which it is as a string, and what its value is."""
        tag = str.__new__(cls, name)
        tag._value_, tag.meaning = name, meaning
        return tag

    kind = (
        "slimdown.kind",
        "`tuned`; `baseline`: a run that holds a base's evaluations; `sweep`: one that holds a command's runs",
    )
    sweep = "slimdown.sweep", "what the runs that one command started have in common"
    sweep_key = (
        "slimdown.sweep_key",
        "of a sweep: a digest of its jobs, by which a repeated command finds it",
    )
    run_key = (
        "slimdown.run_key",
        "a digest of all that the result depends on: a command that comes to it is skipped",
    )
    seed = "slimdown.seed", "the setting `seed`"
    git_commit = (
        "slimdown.git_commit",
        "of the folder that the run was started in; `-dirty` where files differ from it",
    )
    owner = (
        "slimdown.owner",
        "the process that works on the run, or worked last: its host, boot, number and start",
    )
    heartbeat = (
        "slimdown.heartbeat",
        "when it was last heard of, in seconds since 1970; told every 20 seconds",
    )
    at = "slimdown.at", "how far it was then: `training 120/376`"
    deaths = (
        "slimdown.deaths",
        "how often in a row its process died with nothing new kept, and a digest of what was",
    )
    processes = (
        "slimdown.processes",
        "how many processes made it together, each step with a batch of each; absent: one",
    )
    error = "slimdown.error", "of a failed run, what ended it"
    pruned = "slimdown.pruned", "of a trial that its search ended early: when, and why"
    model = "slimdown.model", "the base's hub id or folder"
    model_revision = "slimdown.model_revision", "its commit, or a digest of a folder"
    licence = "slimdown.licence", "its licence, as its card says: a name, or `other NAME LINK`"
    quantization = "slimdown.quantization", "how it was quantized"
    dtype = "slimdown.dtype", "what it computes in"
    dtype_reason = "slimdown.dtype_reason", "why"
    compute_dtype = "slimdown.compute_dtype", "what 4-bit weights are unpacked to"
    device = "slimdown.device", "where"
    dataset = "slimdown.dataset", "the datasets' names"
    data_fingerprint = "slimdown.data_fingerprint", "a digest of the text that was used"
    origin = (
        "slimdown.origin",
        "of a model that was tuned elsewhere: its hub id and commit, folder and digest, or logs",
    )
    merged = "slimdown.merged", "of a merged model: the run whose adapter is in it"
    scoring_path = "slimdown.scoring_path", "how answers came about: `shared` or `stock`"
    harness_version = "slimdown.harness_version", "lm-eval's"
    verdict = (
        "slimdown.verdict.",
        "of a benchmark: `retained`, `forgotten`, `improved` or `undecided`",
    )
    baseline = (
        "slimdown.baseline.",
        "of a benchmark: the run of kind `baseline` that holds the base's answers",
    )
    base_key = "slimdown.base_key.", "of a benchmark: the key of that evaluation, in whatever run"
    evaluation = (
        "slimdown.evaluation.",
        "of a key: the run holds the evaluation of this key, in `samples/VALUE.parquet`",
    )
    validation_loss = (
        "slimdown.validation_loss.",
        "of a key: a base's validation loss, to the last digit",
    )
    sent_for = (
        "slimdown.sent_for",
        "of a run on disk: the run that its store began before it fell silent",
    )
    sent = "slimdown.sent", "of a run that `slimdown.send` made: the run on disk"
    attempt = "slimdown.attempt", "by which a run is found whose opening a server did not answer"
