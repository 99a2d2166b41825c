"""Sample responses of one iteration on the Ray cluster at RAY_ADDRESS.

Command: `python ray_jobs/generate.py RUN --iteration 1`.
"""

import sys

from xlr.commands.cli import main

sys.argv[1:1] = ["generate"]
main()
