"""What the variants of a sweep share, before anything is computed, and what it saves."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from xlr import configfile, pipeline
from xlr.errors import UserError
from xlr.pipeline import Stage
from xlr.planning import plan as planning
from xlr.planning.machines import Machines
from xlr.planning.planner import Planner
from xlr.run import sharing
from xlr.run.context import Context
from xlr.sweep.variants import Variant
from xlr.terminal.console import Table, duration, number_columns, text_columns


@dataclass(frozen=True)
class Planned:
    """A variant with its unfinished stages."""

    variant: Variant
    needs: Mapping[Stage, Sequence[Stage]]
    """Stage -> the stages that it reads from, for all stages."""
    makers: Mapping[Stage, str]
    """Stage -> the variant that makes its artefact: this one, or one before it. Stages that this variant has finished,
    or can take over at once, are left out."""
    machines_of: Callable[[Stage], Machines]
    """What a stage runs on."""

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Stage -> how long it is planned to take; empty where the model's family has no formulas."""
        try:
            found = planning.make(Planner(self.variant.context, self.machines_of), lambda _: None, ran_there=False)
        except UserError:
            return {}
        return {own["stage"]: own["seconds"] for own in found["stages"]}

    @property
    def own(self) -> list[Stage]:
        """The stages that it makes itself."""
        return [stage for stage, maker in self.makers.items() if maker == self.variant.name]

    def time(self, stages: Sequence[Stage]) -> float:
        """How long these stages are planned to take, one after the other."""
        return sum(self.seconds.get(str(stage), 0.0) for stage in stages)


def keys(context: Context, by_content: bool = False) -> dict[Stage, str]:
    """A key of each stage: stages of two runs with equal keys make equal artefacts.

    Where the content of what stages read from each other is not known yet, the key of the stage that makes it stands
    for it. Stages with different keys may turn out to be equal, too.

    Args:
        by_content: use the content where it is known. Runs in which different stages are finished then differ.
    """
    plan, found = pipeline.stages(context.config), dict[Stage, str]()
    makers = {stage.artifact(context).folder: stage for stage in plan}
    for stage in plan:
        artifact = stage.artifact(context)
        inputs: dict[str, Any] = {}
        for name, source in artifact.inputs.items():
            maker = makers.get(Path(str(source)))
            known = maker is None or (by_content and artifact.input_digests[name] is not None)
            inputs[name] = artifact.input_digests[name] if known or maker is None else found[maker]
        found[stage] = sharing.key(artifact, inputs)
    return found


def divide(
    variants: Sequence[Variant],
    machines_of: Callable[[Context], Callable[[Stage], Machines]],
    taken_over: bool = False,
) -> list[Planned]:
    """Give each unfinished stage to the first variant that has it.

    Args:
        machines_of: what the stages of a variant run on.
        taken_over: whether the variants have taken over already what there is, so that nothing else counts as finished.
    """
    first: dict[str, str] = {}
    planned = []
    finished: set[str] = set()
    if not taken_over:
        finished = {key for variant in variants for key in finished_keys(variant.context)}
        finished |= {key for run in _others(variants[0].context) for key in finished_keys(run)}
    for variant in variants:
        context, own = variant.context, keys(variant.context, by_content=taken_over)
        left = [stage for stage in own if own[stage] not in finished and not pipeline.done(context, stage)]
        makers = {stage: first.setdefault(own[stage], variant.name) for stage in left}
        planned.append(Planned(variant, pipeline.needs(context), makers, machines_of(context)))
    return planned


def finished_keys(context: Context) -> Iterator[str]:
    """The keys of what a run has finished with its present configuration and inputs."""
    try:
        found = keys(context)
    except UserError:  # an input is gone
        return
    for stage, key in found.items():
        with contextlib.suppress(UserError):  # it was made with other inputs, which were changed since
            if pipeline.done(context, stage):
                yield key


def _others(context: Context) -> Iterator[Context]:
    """The runs that a run shares with; those that this version of xlr cannot read are left out."""
    for run in (run for place in context.config.reuse for run in sharing.runs_in(Path(place))):
        try:
            yield Context(configfile.load_here(run))
        except UserError:
            continue


def table(planned: Sequence[Planned]) -> Table:
    """Each variant: its settings, what it makes itself, and what it takes over."""
    rows = [
        (
            one.variant.name,
            ", ".join(f"{key}={value}" for key, value in one.variant.differs.items()) or "-",
            ", ".join(map(str, one.own)) or "nothing",
            _taken(one),
            duration(one.time(one.own)) if one.seconds else "",
        )
        for one in planned
    ]
    columns = (*text_columns("variant", "settings", "makes", "takes over"), *number_columns("planned"))
    return Table("", columns, rows)


def _taken(one: Planned) -> str:
    """What a variant takes over, by the variant that makes it."""
    by_maker: dict[str, list[str]] = {}
    for stage, maker in one.makers.items():
        if maker != one.variant.name:
            by_maker.setdefault(maker, []).append(str(stage))
    return "; ".join(f"{', '.join(stages)} from {maker}" for maker, stages in by_maker.items()) or "-"


def totals(planned: Sequence[Planned]) -> str:
    """How many stages there are, together and run by run, and how long they are planned to take."""
    made, alone = sum(len(one.own) for one in planned), sum(len(one.makers) for one in planned)
    text = f"{made} stages to make; run by run it would be {alone}"
    together = sum(one.time(one.own) for one in planned)
    apart = sum(one.time(list(one.makers)) for one in planned)
    if apart and all(one.seconds for one in planned):
        text += f". Planned: {duration(together)} instead of {duration(apart)}, {together / apart:.0%}"
    return text + "."
