"""What in an address opens it, and is shown to nobody."""

import re

CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)")
