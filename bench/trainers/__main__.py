"""One job in a process of its own: `python -m trainers FOLDER` reads job.json there and writes result.json."""

import sys
from pathlib import Path

from puna.artifacts import write_json
from trainers.job import Job, do

job = Job.read(Path(sys.argv[1]))
write_json(job.result, do(job))
