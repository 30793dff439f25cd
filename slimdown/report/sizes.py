"""What runs would take -> tables: bytes of the weights by data type, trained parameters, peaks of memory."""

from collections.abc import Sequence
from typing import Any

from slimdown.config.schema import RunConfig
from slimdown.models.dequantize import free_bytes
from slimdown.models.model import Outline
from slimdown.models.sizes import WeightSizes, count_parameters, predicted_bytes
from slimdown.report import numbers
from slimdown.report.table import Cell, Column, Row, Table
from slimdown.training.footprint import Footprint

_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "nf4": 4}


def weights_table(outline: Outline, held: dict[str, WeightSizes], run: RunConfig) -> Table:
    """Bytes of one model's weights, a row a data type: by equation 1.1, and as bitsandbytes holds them."""
    n, model, dtype = (
        count_parameters(outline.model),
        outline.model,
        str(outline.dtype).removeprefix("torch."),
    )
    others = {"float32": 4, "bfloat16": 2}
    rows = []
    for name, bits in _BITS.items():
        if name == dtype or name in others:
            scale = {"float32": 4}.get(name, 2) / outline.dtype.itemsize
            sizes = WeightSizes(0, 0, int(held["none"].rest * scale))
        elif name in held:
            sizes = held[name]
        else:
            continue
        rows.append(_weights_row(name, predicted_bytes(n, bits), sizes))
    embeddings = model.get_input_embeddings().weight
    tied = embeddings is model.get_output_embeddings().weight
    parts = f"{embeddings.numel():,} of them embeddings, {'the head as well' if tied else 'as many in the head'}"
    columns = ("equation 1.1", "held", "layers", "constants", "the rest")
    return Table(
        title=f"{run.model.id}: {n:,} parameters, {parts}",
        columns=(Column("weights in"), *(Column(name, is_number=True) for name in columns)),
        rows=tuple(rows),
        legend="Equation 1.1: parameters x bits / 8. Held: the numbers of quantized layers, what they are multiplied "
        f"with, and what is never quantized (embeddings, norms, head), in {dtype} beside int8 and nf4.",
    )


def _weights_row(name: str, predicted: float, sizes: WeightSizes) -> Row:
    parts = (predicted, sizes.held, sizes.layers, sizes.constants, sizes.rest)
    names = ("predicted_bytes", "held_bytes", "layer_bytes", "constant_bytes", "rest_bytes")
    cells = (
        Cell(numbers.size(n) if n else numbers.NOTHING, values={key: n})
        for key, n in zip(names, parts, strict=True)
    )
    return Row((Cell(name, values={"dtype": name}), *cells))


def runs_table(runs: Sequence[tuple[list[str], RunConfig, Footprint]]) -> Table:
    """What is trained and held, a row a run."""
    headings = ("trained", "share, %", "equation 1.2", "training peak", "evaluation peak")
    run, first = runs[0][1:]
    free = free_bytes(first.device)
    reasons = dict.fromkeys(found.reason for *_, found in runs if found.reason)
    return Table(
        title="",
        columns=(Column("run"), *(Column(name, is_number=True) for name in headings)),
        rows=tuple(_run_row(own, found) for own, _, found in runs),
        notes=tuple(f"A peak is not known: {reason}" for reason in reasons),
        legend="Equation 1.2: r (d + k) for each adapted matrix. Peaks: at most, with batches of "
        f"{run.train.per_device_train_batch_size} rows of {run.train.max_length} tokens (a run takes its own rows), "
        f"the libraries included{_mapped(runs)}; {numbers.size(free)} are free on {first.device.type}.",
    )


def _mapped(runs: Sequence[tuple[list[str], RunConfig, Footprint]]) -> str:
    """What of the peaks the system takes back where it needs room."""
    most = max(found.mapped for *_, found in runs)
    return (
        f", and of quantized weights {numbers.size(most)} of their file, which the system drops in need"
        if most
        else ""
    )


def _run_row(own: Sequence[str], found: Footprint) -> Row:
    known: list[Any] = [found.training, found.evaluation]
    peaks = [Cell(numbers.NOTHING if peak is None else numbers.size(peak)) for peak in known]
    by_equation = numbers.NOTHING if found.by_equation is None else f"{found.by_equation:,}"
    share = 100 * found.n_trainable / found.n_parameters
    return Row(
        (
            Cell(" ".join(own) or "as set"),
            Cell(f"{found.n_trainable:,}"),
            Cell(f"{share:.3g}"),
            Cell(by_equation),
            *peaks,
        )
    )
