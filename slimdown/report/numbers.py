"""How numbers are written.

A number that people read has a true minus sign, and what is no number is said in a word. Shares of 1 come in; percent
and points go out.
"""

from math import isfinite, isnan

from slimdown.stats.paired import Estimate

UNDEFINED = "undefined"
NOTHING = "–"


def number(value: float, form: str = ".1f") -> str:
    """The number with a true minus sign, or a word where there is none.

    >>> number(-3.14), number(2.0, "+.1f"), number(float("nan"))
    ('−3.1', '+2.0', 'undefined')
    """
    if isnan(value):
        return UNDEFINED
    return f"{value:{form}}".replace("-", "\N{MINUS SIGN}") if isfinite(value) else "unbounded"


def interval(low: float, high: float, form: str = ".1f") -> str:
    """The interval in brackets; empty where there is none.

    >>> interval(-2.04, 3.0, "+.1f"), interval(1.0, float("inf"))
    ('[−2.0, +3.0]', '[1.0, no upper bound]')
    """
    if isnan(low) or isnan(high):
        return ""
    below = number(low, form) if isfinite(low) else "no lower bound"
    return f"[{below}, {number(high, form) if isfinite(high) else 'no upper bound'}]"


def points(change: Estimate) -> tuple[str, str]:
    """A change in points, and its interval."""
    return number(100 * change.value, "+.1f"), interval(100 * change.low, 100 * change.high, "+.1f")


def mean_points(change: Estimate, spread: float) -> tuple[str, str]:
    """A change in points and, of several seeds, its standard deviation, else its interval.

    >>> mean_points(Estimate(-0.3, 0.1, -0.5, -0.1), float("nan")), mean_points(Estimate(-0.3, 0.1, -0.5, -0.1), 0.02)
    (('−30.0', '[−50.0, −10.0]'), ('−30.0', '± 2.0'))
    """
    if isnan(change.value):
        return NOTHING, ""
    text, doubt = points(change)
    return text, f"± {number(100 * spread)}" if isfinite(spread) else doubt


def percent(share: Estimate) -> tuple[str, str]:
    """A share in percent, and its interval."""
    return f"{number(100 * share.value)} %", interval(100 * share.low, 100 * share.high)


def score(estimate: Estimate) -> tuple[str, str]:
    """A score in percent, and its standard error."""
    error = estimate.standard_error
    return number(100 * estimate.value), "" if isnan(error) else f"±{number(100 * error)}"


def together(pair: tuple[str, str]) -> str:
    """A number and how sure it is, on one line."""
    return " ".join(filter(None, pair))


def p_value(p: float) -> str:
    """A p-value to three places.

    >>> p_value(0.0004), p_value(0.0449)
    ('< 0.001', '0.045')
    """
    return "< 0.001" if p < 0.001 else number(p, ".3f")


def duration(seconds: float) -> str:
    """Seconds as a person counts them.

    >>> duration(9.96), duration(130), duration(7260)
    ('10.0 s', '2 min 10 s', '2 h 1 min')
    """
    if not isfinite(seconds):
        return UNDEFINED
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(n_bytes: float) -> str:
    """Bytes as people say them: 2.30 GiB, 256.6 MiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def asked(n: float, n_available: float | None) -> str:
    """How many questions were asked, and of how many where that were not all.

    >>> asked(48, 1319), asked(1319, 1319), asked(1319, None)
    ('48 of 1,319', '1,319', '1,319')
    """
    return f"{n:,.0f}" + (f" of {n_available:,.0f}" if n_available and n < n_available else "")


def plural(n: int, one: str) -> str:
    """A number with its noun.

    >>> plural(1, "step"), plural(1200, "step")
    ('1 step', '1,200 steps')
    """
    return f"{n:,} {one}" if n == 1 else f"{n:,} {one}s"
