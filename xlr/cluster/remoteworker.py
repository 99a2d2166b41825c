"""What Ray starts in a worker's process. The driver imports this module only: neither torch's modules nor vLLM."""

from typing import Any

from xlr.records import Task


class RemoteWorker:
    """A worker that samples with vLLM or, without it, with transformers, which also scores.

    Args:
        vllm: whether it samples with vLLM.
        arguments: those of `VllmSampler` or `Worker`.
    """

    def __init__(self, vllm: bool, *arguments: Any):
        if vllm:
            from xlr.model.vllmsampler import VllmSampler

            self._worker: Any = VllmSampler(*arguments)
        else:
            from xlr.model.worker import Worker

            self._worker = Worker(*arguments)

    def node(self) -> tuple[str, dict[str, str | None]]:
        """See `Actor.node`."""
        found: tuple[str, dict[str, str | None]] = self._worker.node()
        return found

    def run(self, task: Task) -> Any:
        """See `Actor.run`."""
        return self._worker.run(task)
