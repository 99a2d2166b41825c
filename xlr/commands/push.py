"""`xlr push`: uploads the model of a finished iteration to the Hugging Face hub, after reading it again.

Reads `RUN/iter{t}/model/` as its manifest lists it: weights, configuration, tokenizer and model card.
"""

from xlr.commands.stagecommands import confirm, open_context, require_run
from xlr.errors import UserError
from xlr.foreign.upload import destination, upload
from xlr.run.context import Context
from xlr.run.manifests import manifest_path, verified
from xlr.terminal.console import console, size
from xlr.training import align


def push(source: str, repository: str, iteration: int | None, branch: str, public: bool, yes: bool) -> None:
    """Say what would go where, ask, upload it as one commit, and print the commit's address.

    Raises:
        UserError: the iteration has no finished model, a file of it has changed, or the hub refuses.
    """
    require_run(source)
    context = open_context(source, None)
    chosen = _chosen(context, iteration)
    files = verified(context.run.iteration(chosen) / "model", exact=True, fresh=True)
    target = destination(repository, branch, public)
    total = sum(file.stat().st_size for file in files.values())
    console.print(f"iteration {chosen} of {context.run.path}: {len(files)} files, {size(total)}")
    kind = "private" if target.private else "public"
    console.print(f"to {repository}, branch {branch}: a {kind} repository, {'new' if target.new else 'there already'}")
    if not yes:
        confirm(f"xlr push {source} {repository}")
    print(upload(target, files, f"Iteration {chosen}, trained by xlr"))


def _chosen(context: Context, iteration: int | None) -> int:
    """The iteration whose model is pushed.

    Raises:
        UserError: the run does not train it, or has not finished it.
    """
    own = [*align.iterations(context.config), *context.config.trained_iterations]
    finished = [t for t in own if manifest_path(context.run.iteration(t) / "model").is_file()]
    if iteration is not None and iteration not in own:
        raise UserError(f"--iteration {iteration}: not trained by this run; choose one of {', '.join(map(str, own))}")
    if not finished or (iteration is not None and iteration not in finished):
        which = "no iteration is" if iteration is None else f"iteration {iteration} is not"
        raise UserError(f"{context.run.path}: {which} finished yet; run `xlr run {context.run.path}` first")
    return finished[-1] if iteration is None else iteration
