"""The Ray workers as a model of lm-eval, EleutherAI's harness of benchmarks. The only module that imports lm_eval.

It computes log-probabilities of choices, for tasks of multiple choice. Everything else of a task (its questions, shots,
metrics) is lm-eval's.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from xlr.benchmarking.facts import BenchmarkFacts, Metric
from xlr.data.conversations import with_system
from xlr.errors import UserError
from xlr.foreign.modelfiles import reason
from xlr.languages import ENGLISH
from xlr.records import Example, Logps, Message
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.settings.dataconfig import BenchmarksConfig
from xlr.work.logps import one_row_each, resumable_logps
from xlr.work.shards import whole

_KIND = "multiple_choice"
_RESAMPLES = 1000  # for the standard errors of metrics that are not means


def load_tasks(section: BenchmarksConfig) -> dict[str, Any]:
    """The tasks of a section by name, those of groups each on its own. Data sets are downloaded where they are missing.

    Raises:
        UserError: a task is not known, its data cannot be read, or it is no task of multiple choice.
    """
    manager = TaskManager(include_path=section.include)
    names = [name for name in section.tasks if not manager.match_tasks([name])]
    if names:
        raise UserError(
            f"evaluate.benchmarks.tasks: lm-eval knows no task {names[0]!r}; `lm-eval ls tasks` lists all, and "
            "evaluate.benchmarks.include names a folder of own ones"
        )
    try:
        with _quiet():
            tasks: dict[str, Any] = manager.load(list(section.tasks))["tasks"]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"evaluate.benchmarks: the data of {', '.join(section.tasks)} cannot be read ({reason(error)}); "
            "`xlr fetch` downloads it where there is a network"
        ) from error
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != _KIND:
            raise UserError(
                f"evaluate.benchmarks.tasks: {name} is a task of the kind {task.OUTPUT_TYPE}; xlr runs those of "
                f"{_KIND}. Answers that are generated belong to evaluate.checked or to a judge"
            )
    return tasks


def evaluate(context: Context, target: Artifact, model: str, section: BenchmarksConfig) -> BenchmarkFacts:
    """The metrics of one model on all tasks.

    Args:
        model: the model's folder.

    Raises:
        UserError: see `load_tasks`.
    """
    workers = _Workers(context, target, model, context.encoder.tokenizer)
    with _quiet():
        found = simple_evaluate(
            workers,
            tasks=list(load_tasks(section).values()),
            num_fewshot=section.num_fewshot,
            limit=section.limit,
            apply_chat_template=section.chat_template,
            fewshot_as_multiturn=section.chat_template,
            task_manager=TaskManager(include_path=section.include),
            log_samples=False,
            bootstrap_iters=_RESAMPLES,
        )
    return {
        name: {
            "rows": found["n-samples"][name]["effective"],
            "version": str(found["versions"].get(name, "")),
            "metrics": dict(_metrics(found["results"][name])),
        }
        for name in found["results"]
        if name in found["n-samples"]
    }


def _metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, Metric]]:
    """Each metric of a task without a filter, such as acc, with its standard error.

    Without exact_match, which asks whether a choice is what the model would say by itself: that is not computed.
    """
    for key, value in result.items():
        name, _, chosen = key.partition(",")
        left_out = name.startswith("exact_match") or name.endswith("_stderr")
        if chosen == "none" and not left_out and isinstance(value, int | float):
            error = result.get(f"{name}_stderr,none")
            yield name, {"value": float(value), "error": float(error) if isinstance(error, int | float) else None}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's progress bars off the terminal: the workers have their own."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


class _Workers(TemplateLM):
    """A model in the Ray workers. Questions with the same context share its computation."""

    def __init__(self, context: Context, target: Artifact, model: str, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self._context = context
        self._target = target
        self._model = model
        self.tokenizer = tokenizer
        self._rounds = 0

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without context follows."""
        beginning = self.tokenizer.bos_token_id
        return self.eot_token_id if beginning is None else int(beginning)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's results."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the tokenizer's own special tokens unless the text begins with them or they are refused."""
        bos = self.tokenizer.bos_token
        default = not (bos and string.startswith(bos))
        return self.tokenizer.encode(
            string, add_special_tokens=default if add_special_tokens is None else add_special_tokens
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation."""
        *before, last = chat_history
        asked = chat_history if add_generation_prompt else before  # else the last message begins the answer
        system = self._context.config.model.system_prompt
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in asked]
        text = self._context.encoder.render(with_system(turns, system, ENGLISH))
        return text if add_generation_prompt else text + last["content"]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """For each request its log-probability in nats; whether it is greedy is not computed, and false."""
        from xlr.sampling import room  # imports torch

        limit = room.positions_of_run(self._context)
        by_context: dict[tuple[int, ...], list[int]] = {}
        choices: list[tuple[int, ...]] = []
        for number, request in enumerate(requests):
            before, choice = request[1:]
            start = 0 if limit is None else max(len(before) + len(choice) - limit - 1, 0)  # as lm-eval: from the left
            by_context.setdefault(tuple(before[start:]), []).append(number)
            choices.append(tuple(choice))
        examples = [
            Example(before, tuple(choices[number] for number in numbers)) for before, numbers in by_context.items()
        ]
        rows = self._logps(examples)
        logps = [0.0] * len(requests)
        for numbers, row in zip(by_context.values(), rows, strict=True):
            for number, logp in zip(numbers, row.logps, strict=True):
                logps[number] = logp
        return [(logp, False) for logp in logps]

    def _logps(self, examples: Sequence[Example]) -> list[Logps]:
        context, self._rounds = self._context, self._rounds + 1
        keys = [[("benchmarks", str(number))] for number in range(len(examples))]
        return resumable_logps(
            context,
            self._target,
            f"round-{self._rounds}",
            (self._model,),
            context.config.scoring_dtype,
            Logps,
            [shard.replanned(lambda _: one_row_each(examples, keys)) for shard in whole(examples, keys)],
            f"{self._target.stage} {self._target.folder.parent.name}",
            "questions",
        ).rows()

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Not of multiple choice; `load_tasks` refuses such tasks."""
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Not of multiple choice; `load_tasks` refuses such tasks."""
        raise NotImplementedError
