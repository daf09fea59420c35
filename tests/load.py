"""How busy this machine is: what has to be over by a moment gets as much longer as others' processes make it take."""

import os


def load_factor() -> float:
    """How much longer than on an idle machine something may take here and now: from 1 to 8."""
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), 8.0)
