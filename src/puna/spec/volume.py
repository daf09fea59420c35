"""What a volume may be called."""

import re

VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""As a whole: it is a folder's name, and a part of an address."""
