"""Ends a run before its last iteration, if what was measured speaks against another one: `stop_early`."""

from xlr import pipeline
from xlr.findings.collect import collect
from xlr.findings.stopping import sentences
from xlr.pipeline import Stage
from xlr.records import START
from xlr.run import stopped
from xlr.run.context import Context
from xlr.terminal.console import console


def ends(context: Context, stage: Stage) -> bool:
    """Whether the run ends with the iteration of a stage that has just finished. The decision is recorded.

    It is made when the last stage of an iteration is done, whichever job made it.
    """
    config, iteration = context.config, stage.iteration
    if not config.stop_early or not isinstance(iteration, int) or not START < iteration < config.iterations:
        return False
    own = [one for one in pipeline.stages(config) if one.iteration == iteration]
    if not all(pipeline.done(context, one) for one in own):
        return False
    advice = collect(config, context.run, context.run.path.name)["advice"]
    if advice is None or advice["verdict"] != "no" or advice["iteration"] != iteration + 1:
        return False
    why = sentences(advice)
    stopped.write(context.run.path, iteration, why)
    console.print(f"stop_early: the run ends with iteration {iteration}")
    for line in why:
        console.print(f"  {line}")
    return True
