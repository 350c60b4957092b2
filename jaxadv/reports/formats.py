"""Formats of the numbers in tables and pages."""

from collections.abc import Sequence

MISSING = "\N{EN DASH}"
"""Cell of a table for a value that does not exist."""
_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


def percent(share: float) -> str:
    """Format a share as a percentage.

    >>> percent(0.5519)
    '55.2 %'
    """
    return f"{100 * share:.1f} %"


def interval(ci95: Sequence[float]) -> str:
    """Format the ends of an interval of shares as percentages, without the sign."""
    low, high = ci95
    return f"{100 * low:.1f} \N{EN DASH} {100 * high:.1f}"


def norm(norm: str) -> str:
    """Return the symbol of a norm: "L∞" for "linf", "L2" for "l2", "L1" for "l1"."""
    return _NORMS.get(norm, norm)


def eps(eps: float) -> str:
    """Format a radius, followed by its fraction of 255 where it is one.

    >>> eps(0.1), eps(8 / 255)
    ('0.10', '0.03137 = 8/255')
    """
    decimal = max(f"{eps:.2f}", f"{eps:.4g}", key=len)
    return f"{decimal} = {fraction}" if (fraction := byte_fraction(eps)) else decimal


def byte_fraction(eps: float) -> str | None:
    """Return a radius below 1 as a fraction such as "8/255"; None for no multiple of 1/255."""
    if eps >= 1:
        return None
    numerator = round(255 * eps)
    return f"{numerator}/255" if numerator and abs(255 * eps - numerator) < 1e-6 else None


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes, or hours and minutes.

    >>> duration(4.2), duration(180.0), duration(3720.0)
    ('4.2 s', '3 min', '1 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds / 60), 60)[::-1]
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
