"""Stage 0: trains pi^0 from pi_I on English preferences, with the same trainer as the iterations.

Reads `align.preferences` and pi_I; writes `RUN/iter0/model` and its metrics. Run alone with `xlr align RUN`.
"""

from xlr.records import START
from xlr.settings.config import Config
from xlr.training import model

artifact, check, make = model.artifact, model.check, model.make


def iterations(config: Config) -> list[int]:
    """Iteration 0, unless `model.aligned` gives an aligned model."""
    return [] if config.model.aligned else [START]
