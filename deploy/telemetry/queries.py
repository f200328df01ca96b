"""Writes PromQL of dashboards, so that every query is limited to the namespace on show."""

from collections.abc import Sequence

HERE = 'namespace=~"$namespace"'
WINDOW = "$__rate_interval"


def selector(name: str, *matchers: str) -> str:
    """Return the samples of this name in the namespace on show."""
    return f"{name}{{{', '.join((HERE, *matchers))}}}"


def rate(name: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """Return what a counter, or a part of a histogram, gains a second, summed."""
    return f"{_sum(by)}(rate({selector(name, *matchers)}[{WINDOW}]))"


def level(name: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """Return a gauge, summed."""
    return f"{_sum(by)}({selector(name, *matchers)})"


def quantile(share: float, name: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """Return a quantile of a histogram; `name` without suffix."""
    return f"histogram_quantile({share:g}, {rate(f'{name}_bucket', *matchers, by=('le', *by))})"


def mean(name: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """Return the mean of what a histogram saw; `name` without suffix."""
    return over(rate(f"{name}_sum", *matchers, by=by), rate(f"{name}_count", *matchers, by=by))


def over(part: str, whole: str) -> str:
    """Return one expression divided by another."""
    return f"{part} / {whole}"


def or_zero(expression: str) -> str:
    """Return an expression that is zero where nothing was counted yet."""
    return f"({expression} or vector(0))"


def _sum(by: Sequence[str]) -> str:
    return f"sum by ({', '.join(by)}) " if by else "sum "
