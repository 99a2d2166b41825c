"""Score the responses of one iteration on the Ray cluster at RAY_ADDRESS.

Command: `python ray_jobs/score.py RUN --iteration 1`.
"""

import sys

from xlr.commands.cli import main

sys.argv[1:1] = ["score"]
main()
