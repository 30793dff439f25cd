"""The first rows of local files, checked before anything heavy is imported."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from slimdown.config.dataset_config import DatasetConfig
from slimdown.data.row_formats import detect_format, explain_row, format_row
from slimdown.utils.errors import DataError
from slimdown.utils.row_files import iter_records

_FIRST_ROWS = 100


def check_row_files(datasets: Mapping[str, DatasetConfig]) -> Iterator[str]:
    """Find the first problem in the first hundred rows of each local file; needs no torch.

    Args:
        datasets: The chosen datasets by name; those of the hub are skipped.

    Yields:
        One line for each file with a problem: the dataset, the file, and the row or the column. The
        rows behind the first hundred are checked when the file is loaded.
    """
    for name, config in datasets.items():
        if config.file is None:
            continue
        try:
            _check_first_rows(name, config, config.file)
        except DataError as error:
            yield f"dataset.{name}: {config.path}: {' '.join(str(error).split())}"


def _check_first_rows(name: str, config: DatasetConfig, file: Path) -> None:
    """Check the first rows of a dataset's file.

    Raises:
        DataError: The file cannot be read, a row cannot be trained on and bad rows are not skipped,
            or there are too few rows.
    """
    n_sound = 0
    records = list(islice(iter_records(file), _FIRST_ROWS))
    format_ = detect_format(config, records)
    for number, record in records:
        try:
            format_row(record, config, format_)  # raises if the row is wrong
            n_sound += 1
        except DataError as error:
            if not config.skip_bad_rows:
                raise DataError(explain_row(name, number, error)) from None
    # One row is held out, and one is trained on. A longer file may have sound rows later.
    if n_sound < 2 and len(records) < _FIRST_ROWS:
        raise DataError(f"it has {n_sound} row(s) to train on; at least 2 are needed")
