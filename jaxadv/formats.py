"""Figures as a reader sees them: in the terminal, in the report, in tables of results."""

from collections.abc import Sequence

_NORMS = {"linf": "L∞", "l2": "L2"}


def percent(accuracy: float) -> str:
    """Returns a share in per cent."""
    return f"{100 * accuracy:.2f} %"


def interval(ci95: Sequence[float]) -> str:
    """Returns the ends of an interval, in per cent."""
    low, high = ci95
    return f"{100 * low:.1f} \N{EN DASH} {100 * high:.1f}"


def norm(norm: str) -> str:
    """Returns the sign of a norm."""
    return _NORMS.get(norm, norm)


def eps(eps: float) -> str:
    """Returns a radius, with the fraction of 255 that it is, if it is one."""
    decimal = max(f"{eps:.2f}", f"{eps:.4g}", key=len)
    return f"{decimal} = {fraction}" if (fraction := byte_fraction(eps)) else decimal


def byte_fraction(eps: float) -> str | None:
    """Returns a radius as a fraction of 255, if it is one."""
    numerator = round(255 * eps)
    return f"{numerator}/255" if numerator and abs(255 * eps - numerator) < 1e-6 else None


def duration(seconds: float) -> str:
    """Returns a time in the largest unit that fits."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds / 60), 60)[::-1]
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
