"""What numbers may be: out of range is a ValueError that names them."""

from __future__ import annotations


def require_positive(**numbers: float) -> None:
    """Refuse what is not above 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be positive, not {number}")


def require_fraction(**numbers: float) -> None:
    """Refuse what is not in [0, 1)."""
    for name, number in numbers.items():
        if not 0 <= number < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, not {number}")


def require_smoothing(weight: float) -> None:
    """Refuse a new measurement's weight outside (0, 1]."""
    if not 0 < weight <= 1:
        raise ValueError(f"a new measurement's weight is above 0 and at most 1, not {weight}")


def require_staleness(*numbers: float) -> None:
    """Refuse what is negative."""
    for number in numbers:
        if not number >= 0:
            raise ValueError(f"staleness and its constants are at least 0, not {number}")
