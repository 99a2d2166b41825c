"""Like jobs of several variants as one array of Slurm. A task's number is that of its variant, the base being 0.

A job of a variant waits for the task of the same number in another array (`aftercorr`), or for one job or task by its
id (`afterok`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xlr.cluster import slurm as scheduler
from xlr.errors import UserError
from xlr.jobs import graph as jobs
from xlr.jobs import submission
from xlr.jobs.submission import Submitted
from xlr.run.files import write_text
from xlr.shipped import shipped
from xlr.sweep.jobs import Key, Node


@dataclass(frozen=True)
class Group:
    """Jobs that are submitted together: one, or the tasks of an array."""

    nodes: tuple[Node, ...]
    same: tuple[int, ...]
    """The arrays before it, whose task of the same variant must succeed first."""
    one: tuple[Key, ...]
    """The jobs, or tasks, that must succeed before all of them."""

    @property
    def name(self) -> str:
        """The name of its jobs within their runs."""
        return self.nodes[0].job.name


def groups(nodes: Sequence[Node], arrays: bool) -> list[Group]:
    """The jobs of a sweep in groups, each after those it waits for.

    Args:
        arrays: whether like jobs make an array; otherwise each is alone.
    """
    if not arrays:
        return [Group((node,), (), node.after) for node in nodes]
    like = {node.key: jobs.alike(node.job, node.slurm) for node in nodes}
    sizes: Mapping[Key, int] = {node.key: 1 for node in nodes}
    # Whether a job waits for its own task of an array depends on which jobs make one, and the other way round. Every
    # round is right; the last has the largest arrays.
    for _ in range(len({node.job.name for node in nodes})):
        found = _grouped(nodes, like, sizes)
        sizes = {node.key: len(group.nodes) for group in found for node in group.nodes}
    return _grouped(nodes, like, sizes)


def _grouped(nodes: Sequence[Node], like: Mapping[Key, object], sizes: Mapping[Key, int]) -> list[Group]:
    """Groups of jobs that are alike and wait for the same.

    Args:
        like: job -> what jobs of a group have in common.
        sizes: job -> how many are in its group, as far as it is known.
    """
    found: dict[tuple[object, tuple[int, ...], tuple[Key, ...]], list[Node]] = {}
    of_node: dict[Key, int] = {}
    for node in nodes:
        own = [key for key in node.after if key[0] == node.key[0] and sizes[key] > 1]
        same = tuple(dict.fromkeys(of_node[key] for key in own))
        signature = like[node.key], same, tuple(key for key in node.after if key not in own)
        found.setdefault(signature, []).append(node)
        of_node[node.key] = list(found).index(signature)
    return [Group(tuple(own), same, one) for (_, same, one), own in found.items()]


def describe(found: Sequence[Group]) -> str:
    """The arrays, one in a line."""
    return "".join(
        f"one array: {group.name} of {', '.join(node.key[0] for node in group.nodes)}\n"
        for group in found
        if len(group.nodes) > 1
    )


@dataclass
class Sender:
    """Submits groups of jobs, and records each job in its run."""

    numbers: Mapping[str, int]
    """Name of a variant -> the number of its tasks."""
    folder: Path
    """That of the sweep."""
    at_once: int | None
    """Tasks of an array that may run at the same time."""
    ids: dict[Key, str] = field(default_factory=dict)
    of_run: dict[str, list[Submitted]] = field(default_factory=dict)

    def send(self, found: Sequence[Group]) -> Iterator[tuple[str, Submitted]]:
        """Submit the groups in order. If Slurm refuses one, all are cancelled.

        Yields:
            Each job with the name of its variant.

        Raises:
            UserError: Slurm refuses one.
        """
        try:
            for number, group in enumerate(found):
                before = [found[index] for index in group.same]
                if len(group.nodes) == 1:
                    self._one(group, before)
                else:
                    self._array(group, before, number)
        except UserError:
            if self.ids:
                scheduler.cancel(list(self.ids.values()))
            raise
        for name, own in self.of_run.items():
            yield from ((name, job) for job in own)

    def _one(self, group: Group, before: Sequence[Group]) -> None:
        (node,) = group.nodes
        name, end = node.key[0], node.after_end_of
        own = [self.ids[one.key] for other in before for one in other.nodes if one.key[0] == name]
        after = [*(self.ids[key] for key in group.one), *own]
        ends = [self.ids[end]] if end and end not in node.after else []
        sent = self.of_run.setdefault(name, [])
        sent.append(submission.send(node.job, node.slurm, node.run, sent, after, ends))
        self.ids[node.key] = sent[-1].id

    def _array(self, group: Group, before: Sequence[Group], number: int) -> None:
        of_number = {self.numbers[node.key[0]]: node for node in group.nodes}
        tasks = self.folder / "slurm" / "arrays" / f"{group.name}-{number}"
        for index, node in of_number.items():
            write_text(tasks / str(index), "\n".join(jobs.script(node.job, node.run)) + "\n")
        write_text(self.folder / "slurm" / jobs.ARRAY, shipped("slurm", jobs.ARRAY).read_text(encoding="utf-8"))
        logs = self.folder / "slurm" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        waits = {
            "afterok": [self.ids[key] for key in group.one],
            "aftercorr": [self.ids[other.nodes[0].key].partition("_")[0] for other in before],
        }
        own = {index: node.job for index, node in of_number.items()}
        name = f"{self.folder.name}-{group.name}"
        command = jobs.array_command(own, group.nodes[0].slurm, name, tasks, logs, waits, self.at_once)
        array = scheduler.submit(command)
        for index, node in of_number.items():
            task, sent = f"{array}_{index}", self.of_run.setdefault(node.key[0], [])
            self.ids[node.key] = task
            after = [self.ids[key] for key in node.after]
            log = str(logs / f"{group.name}-{task}.out")
            sent.append(Submitted(node.job.name, task, list(map(str, node.job.stages)), after, log))
            submission.record(node.run, sent)
