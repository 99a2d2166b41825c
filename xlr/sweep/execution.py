"""A sweep on this machine: one variant after the other."""

import sys
import traceback
from collections.abc import Collection

from xlr import pipeline
from xlr.errors import UserError
from xlr.report import report
from xlr.sweep.variants import Sweep, Variant
from xlr.terminal.console import console


def run(sweep: Sweep, accept: Collection[str] = ()) -> list[str]:
    """Run every stage that is not done yet, of all variants. A variant that fails stops none of the others.

    Args:
        accept: kinds of changed conditions under which unfinished pieces may be continued; see `identity`.

    Returns:
        The variants that failed. What went wrong was printed.

    Raises:
        UserError: a variant has bad input; nothing was computed.
    """
    sweep.record()
    for variant in sweep.variants:
        plan = pipeline.stages(variant.context.config)
        with pipeline.holding(variant.context, plan, accept):
            if not all(pipeline.done(variant.context, stage) for stage in plan):
                pipeline.check(variant.context)
    return [variant.name for variant in sweep.variants if not _finished(variant)]


def _finished(variant: Variant) -> bool:
    """Run one variant; whether it ended well."""
    console.print(f"--- {variant.name}")
    plan = pipeline.stages(variant.context.config)
    try:
        with pipeline.holding(variant.context, plan):
            pipeline.run_all(variant.context, plan)
            report.make([variant.context.config], variant.context.run.path)
    except UserError as error:
        console.print(f"{variant.name} failed: {error}")
        return False
    except Exception:  # the other variants go on; `xlr sweep run` ends with an error
        traceback.print_exc(file=sys.stderr)
        console.print(f"{variant.name} failed; see above")
        return False
    return True
