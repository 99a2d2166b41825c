"""`xlr fetch`: downloads what a run needs from the hub, where there is a network, for nodes that have none.

Writes the commits to `RUN/hub.json` before the first download, so that the run, and another `xlr fetch` after an
interrupted one, use the same.
"""

from xlr.evaluation.difficulty import load
from xlr.foreign import hub
from xlr.run.context import Context
from xlr.terminal.console import console, size


def fetch(context: Context) -> None:
    """Print the size of each model and dataset of the run, then download what is not in the cache.

    Raises:
        UserError: the hub does not give one of them.
    """
    repositories, table = context.repositories, context.config.judge.difficulty
    if table and hub.is_dataset_name(table):
        load(table)  # one small file
        console.print(f"datasets/{table}: its table of difficulties is in the cache")
    elif not repositories:
        console.print(f"{context.run.path}: nothing of this run is on the hub; all its models and data are paths")
    missing = 0
    for repository in repositories:
        name = str(repository)
        found = hub.contents(repository, context.commits.get(name))
        context.commits[name] = found.commit
        missing += found.missing_bytes
        console.print(f"{name} at commit {found.commit[:8]}: {size(found.num_bytes)}, {_to_download(found)}")
    if context.config.evaluate.benchmarks:
        from xlr.benchmarking.benchmarks import check

        check(context)
        console.print(f"the data of {', '.join(context.config.evaluate.benchmarks.tasks)} is in the cache of datasets")
    if repositories:
        context.run.create()
        context.record_commits()
        console.print(f"to download: {size(missing)}")
        context.look_up()
        console.print("everything that this run needs from the hub is in the cache")


def _to_download(found: hub.Contents) -> str:
    return f"{size(found.missing_bytes)} not in the cache yet" if found.missing_bytes else "in the cache already"
