"""Score one iteration on the Ray cluster at RAY_ADDRESS: `python ray_jobs/score.py RUN --iteration 1`."""

import sys

from xlr.cli import main

sys.argv[1:1] = ["score"]
main()
