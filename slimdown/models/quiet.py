"""Keep the bars and warnings of libraries away from a user's console."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LIBRARIES = ("transformers", "bitsandbytes", "peft", "trl", "accelerate", "datasets", "lm_eval")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, libraries draw no bars and log errors only; on leaving they are as before."""
    import datasets
    from transformers.utils import logging as transformers_logging

    with warnings.catch_warnings(), ExitStack() as undo:
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, _LIBRARIES):
            # Setting a level takes milliseconds; within another such context it is set already.
            if logger.level != logging.ERROR:
                undo.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.ERROR)
        if transformers_logging.is_progress_bar_enabled():
            undo.callback(transformers_logging.enable_progress_bar)
            transformers_logging.disable_progress_bar()
        if not datasets.are_progress_bars_disabled():
            undo.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield
