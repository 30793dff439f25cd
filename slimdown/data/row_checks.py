"""The first rows of local files, checked before anything heavy is imported."""

from collections.abc import Iterator, Mapping
from itertools import islice

from slimdown.config.dataset_config import DatasetConfig
from slimdown.data.row_formats import detect_format, explain_row, format_row
from slimdown.utils.errors import DataError
from slimdown.utils.row_files import iter_records

_FIRST_ROWS = 100


def check_row_files(datasets: Mapping[str, DatasetConfig]) -> Iterator[str]:
    """Check the columns and the first hundred rows of local files; needs no torch.

    Args:
        datasets: The chosen datasets by name; those of the hub are skipped.

    Yields:
        One line for each problem, with the dataset, the file and the row. Other rows are checked
        when they are loaded.
    """
    for name, config in datasets.items():
        if config.file is None:
            continue
        n_sound = 0
        try:
            records = list(islice(iter_records(config.file), _FIRST_ROWS))
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
        except DataError as error:
            yield f"dataset.{name}: {config.path}: {' '.join(str(error).split())}"
