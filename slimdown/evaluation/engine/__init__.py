"""The harness's language model, with HFLM's answers from less work, or by HFLM's own path where that is not exact.

`choose_scoring` decides for a base and what is tuned from it, `scoring.SharedWorkLM` (which loads the harness) answers.
"""

from slimdown.evaluation.engine.sharing import Scoring, choose_scoring

__all__ = ["Scoring", "choose_scoring"]
