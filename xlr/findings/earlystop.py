"""Ends a run before its last iteration, if what was measured speaks against another one: `stop_early`."""

from xlr import pipeline
from xlr.findings.collect import collect
from xlr.findings.status import show_end
from xlr.findings.stopping import sentences
from xlr.records import START
from xlr.run import stopped
from xlr.run.context import Context


def ends(context: Context, iteration: int) -> bool:
    """Whether the run ends with an iteration. The decision is made once all of it is done, and recorded."""
    config = context.config
    if not config.stop_early or not START < iteration < config.iterations:
        return False
    if stopped.overtaken(context.run.path, iteration):
        return False
    measured = [stage for stage in pipeline.stages(config) if stage.iteration in (START, iteration)]
    if not all(pipeline.done(context, stage) for stage in measured):
        return False
    advice = collect(config, context.run, context.run.path.name)["advice"]
    if advice is None or advice["verdict"] != "no" or advice["iteration"] != iteration + 1:
        return False
    folders = [stage.artifact(context).folder for stage in measured]
    stopped.write(context.run.path, iteration, sentences(advice), folders)
    return True


def settle(context: Context) -> None:
    """Decide on the last iteration that is done, which another process may have left undecided; then say so.

    `ends` is otherwise asked when a stage ends. It was not if that process died, or if the iteration was taken over.
    """
    for iteration in context.config.trained_iterations:
        if ends(context, iteration):
            context.end_with(iteration)
            break
    show_end(context)
