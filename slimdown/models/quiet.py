"""Keep the bars and warnings of libraries away from a user's console."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("transformers", "bitsandbytes", "peft", "trl", "accelerate", "datasets")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, libraries draw no bars and log errors only; on leaving they are as before."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    draws = transformers_logging.is_progress_bar_enabled()
    datasets = sys.modules.get("datasets")  # who has not imported it draws none of its bars
    maps = datasets is not None and not datasets.are_progress_bars_disabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers_logging.disable_progress_bar()
            if datasets and maps:
                datasets.disable_progress_bars()
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if draws:
            transformers_logging.enable_progress_bar()
        if datasets and maps:
            datasets.enable_progress_bars()
