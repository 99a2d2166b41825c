"""Stage 0: pi^0 from pi_I, trained on English preferences by the same trainer as every iteration.

Reads `align.preferences` and pi_I; writes `RUN/iter0/model` and its metrics. Run alone with `xlr align RUN`.
"""

from xlr.config import Config
from xlr.records import START
from xlr.training import model

artifact, check, make = model.artifact, model.check, model.make


def iterations(config: Config) -> list[int]:
    """The start, unless the run is given an aligned model."""
    return [] if config.model.aligned else [START]
