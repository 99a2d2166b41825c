"""Compute reference log-probabilities on the Ray cluster at RAY_ADDRESS.

Command: `python ray_jobs/reference.py RUN --iteration 1`.
"""

import sys

from xlr.commands.cli import main

sys.argv[1:1] = ["reference"]
main()
