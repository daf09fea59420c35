"""Moments as people write them."""

from __future__ import annotations

import pytest

from puna.control.api.moments import moment
from puna.errors import UsageError

NOW = 1_764_072_000.0  # 2025-11-25 12:00 UTC


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [
        ("90s", 90),
        ("1.5h", 5400),
        ("7d", 7 * 86400),
        ("2025-11-25", 43200),
        ("2025-11-25T11:00:00Z", 3600),
        ("2025-11-25T13:00:00+02:00", 3600),
        ("2025-11-25T11:59:59.370369921Z", 0.62963),
        ("1764071999.5", 0.5),
    ],
)
def test_what_a_moment_means(text: str, ago_s: float) -> None:
    assert NOW - moment(text, NOW) == pytest.approx(ago_s, abs=1e-5)


@pytest.mark.parametrize("text", ["", "soon", "-5", "7 days", "1e400", "99999999999999", "2025-13-01"])
def test_what_means_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        moment(text, NOW)
