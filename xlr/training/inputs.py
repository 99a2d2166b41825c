"""The inputs of a training: settings, models, pairs as token ids, and the plan of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

from xlr.data.preferencerows import english_source
from xlr.data.preferences import Preference, load_preferences
from xlr.data.subsets import hold_out, replayed
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.maths.batching import Batch, micro_batches
from xlr.packing.layout import batch_shape
from xlr.records import INITIAL, START, Example, Message, Pair
from xlr.rewarding import pairs
from xlr.run.artifact import Source
from xlr.run.context import Context, require
from xlr.run.manifests import rows_of
from xlr.settings.dataconfig import PreferencesConfig
from xlr.settings.deciding import deciding
from xlr.settings.trainconfig import TrainConfig
from xlr.work.dropped import Dropped


@dataclass(frozen=True)
class TrainingPair:
    """A pair as token ids: the prompt once, then chosen and rejected."""

    id: str
    """What tells it from the others of its language."""
    lang: str
    example: Example
    prompt: str
    """Id of its prompt; with `align` before it, that of an English preference."""
    weight: float = 1.0
    """How much its preference loss counts."""
    replayed: bool = False
    """Whether an earlier iteration made the pair, or it is an English preference of the align stage."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer of the responses."""
        return len(self.example.prompt) + max(map(len, self.example.responses))


@dataclass(frozen=True)
class _Row:
    """A pair as text; see `TrainingPair`."""

    id: str
    lang: str
    prompt: list[Message]
    chosen: str
    rejected: str
    prompt_id: str
    weight: float
    replayed: bool

    @classmethod
    def of_pair(cls, pair: Pair, origin: str = "") -> "_Row":
        """A pair that an iteration made.

        Args:
            origin: which iteration, if it was an earlier one.
        """
        chosen, rejected = (own[0]["content"] for own in (pair.chosen, pair.rejected))
        name = f"{pair.name}{origin}"
        return cls(name, pair.lang, pair.prompt, chosen, rejected, pair.id, pair.weight, bool(origin))

    @classmethod
    def of_preference(cls, one: Preference, origin: str = "") -> "_Row":
        """A preference of the align stage; see `of_pair`."""
        prompt_id = f"align {one.id}"
        return cls(f"{one.id}{origin}", ENGLISH, one.prompt, one.chosen, one.rejected, prompt_id, 1.0, bool(origin))


@dataclass(frozen=True)
class Training:
    """One training of a run: the align stage (iteration 0) or the train stage of an iteration."""

    context: Context
    iteration: int

    @property
    def stage(self) -> str:
        """The name of its stage."""
        return "align" if self.iteration == START else "train"

    @property
    def title(self) -> str:
        """Its name in messages."""
        return "align" if self.iteration == START else f"train iteration {self.iteration}"

    @property
    def config(self) -> TrainConfig:
        """The settings of its stage."""
        return self.context.config.align if self.iteration == START else self.context.config.at(self.iteration).train

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its settings that affect the result, flat."""
        own = deciding(self.config, self.stage)
        if not self.replayed:  # runs that differ in this share their first iteration
            own.pop("train.replay", None)
        return own

    @property
    def replayed(self) -> list[int]:
        """The earlier iterations whose pairs are trained on again."""
        return list(range(START + 1, self.iteration)) if self.config.replay else []

    @property
    def start(self) -> str:
        """The model that training starts from: pi_I for align, pi^(t-1) for iteration t."""
        return self.context.model(self.iteration - 1)

    @property
    def reference(self) -> str:
        """The DPO reference model."""
        return self.context.model(INITIAL) if self.config.reference == "initial" else self.start

    @property
    def preferences(self) -> str | PreferencesConfig:
        """The English preferences of the align stage."""
        given = self.context.pinned(self.context.config.align.preferences)
        assert given is not None  # else the run has no align stage
        return given

    @property
    def sources(self) -> dict[str, Source]:
        """The files or rows that the pairs are read from, by name."""
        if self.iteration == START:
            return {"preferences": english_source(self.preferences)}
        run = self.context.run
        found: dict[str, Source] = {"pairs": run.iteration(self.iteration) / "pairs"}
        found |= {f"pairs of iteration {number}": run.iteration(number) / "pairs" for number in self.replayed}
        return found | ({"English preferences": english_source(self.preferences)} if self.config.replay_english else {})

    @cached_property
    def _loaded(self) -> tuple[list[TrainingPair], Dropped]:
        limit, encoder = self.config.max_length, self.context.encoder
        kept: list[TrainingPair] = []
        dropped = Dropped()
        for row in self._rows():
            answers = encoder.response(row.chosen), encoder.response(row.rejected)
            example = Example(encoder.prompt_of(row.prompt), answers)
            pair = TrainingPair(row.id, row.lang, example, row.prompt_id, row.weight, row.replayed)
            if pair.length > limit:
                dropped.add(f"longer than max_length={limit}", [(pair.lang, pair.id)])
            else:
                kept.append(pair)
        if not kept:
            raise UserError(f"{self.title}: every pair is longer than max_length={limit} tokens; raise it")
        return kept, dropped

    def _rows(self) -> list[_Row]:
        """Every pair: those of the iteration, then those that are trained on again."""
        if self.iteration == START:
            return [_Row.of_preference(one) for one in self._english(1.0)]
        rows = [_Row.of_pair(pair) for pair in self._pairs_of(self.iteration)]
        for number in self.replayed:
            again = replayed(self._pairs_of(number), self.config.replay, f"{self.context.config.seed} {number}")
            rows += [_Row.of_pair(pair, f" of iteration {number}") for pair in again]
        return rows + [_Row.of_preference(one, " of align") for one in self._english(self.config.replay_english)]

    def _english(self, share: float) -> list[Preference]:
        """A share of the align stage's preferences, in their order."""
        if not share:
            return []
        found = load_preferences(self.preferences, self.context.config.model.system_prompt)
        kept = Random(f"{self.context.config.seed} {share}").sample(range(len(found)), round(share * len(found)))
        return [found[index] for index in sorted(kept)]

    def _pairs_of(self, iteration: int) -> list[Pair]:
        """The pairs that an iteration has made.

        Raises:
            UserError: the pair stage is not finished.
        """
        require(pairs.artifact(self.context, iteration), f"xlr pair {self.context.run.path} --iteration {iteration}")
        return rows_of(self.context.run.iteration(iteration) / "pairs", Pair)

    @property
    def pairs(self) -> list[TrainingPair]:
        """All pairs that fit `max_length`, held-out ones included.

        Raises:
            UserError: the pair stage is not finished, or no pair fits.
        """
        return self._loaded[0]

    @property
    def dropped(self) -> Dropped:
        """The pairs that do not fit `max_length`."""
        return self._loaded[1]

    @cached_property
    def split(self) -> tuple[list[TrainingPair], list[TrainingPair]]:
        """The pairs to train on, and the held-out pairs. No other pair of a held-out prompt is trained on.

        Raises:
            UserError: a language would have no pairs left to train on.
        """
        own = [pair for pair in self.pairs if not pair.replayed]
        _, held_out = hold_out(own, self.config.eval_pairs, self.context.config.seed)
        prompts = {(pair.lang, pair.prompt) for pair in held_out}
        train = [pair for pair in self.pairs if (pair.lang, pair.prompt) not in prompts]
        others = {*self.pairs}.difference(train, held_out)
        self.dropped.add("another pair of its prompt is held out", [(pair.lang, pair.id) for pair in others])
        for lang in sorted({pair.lang for pair in held_out} - {pair.lang for pair in train if not pair.replayed}):
            raise UserError(
                f"eval_pairs: holding out {self.config.eval_pairs} pairs in {lang} leaves none of another prompt to "
                "train on; lower it"
            )
        return train, held_out

    def plan_steps(self, train: TrainConfig, world_size: int) -> list[list[list[Batch]]]:
        """The batches of every step and rank; see the function `plan_steps`."""
        lengths, rows = pair_costs(self.split[0], self.context.config.model.attn_implementation)
        return plan_steps(lengths, rows, train, self.context.config.seed, world_size)


def mismatched(pairs: Sequence[TrainingPair]) -> list[TrainingPair]:
    """Each prompt with the responses of the pair before it that has another prompt; before the first comes the last.

    KTO estimates its reference point from these. There are none if all pairs have the same prompt.
    """
    found = []
    for index, own in enumerate(pairs):
        others = (pairs[index - back].example for back in range(1, len(pairs)))
        other = next((one for one in others if one.prompt != own.example.prompt), None)
        if other is not None:
            found.append(replace(own, example=Example(own.example.prompt, other.responses)))
    return found


def pair_costs(pairs: Sequence[TrainingPair], attn_implementation: str) -> tuple[list[int], list[int] | None]:
    """The size of each pair in a batch: `(lengths, rows)` as the functions of `maths.batching` take them."""
    return batch_shape([pair.example for pair in pairs], attn_implementation)


def plan_steps(
    lengths: Sequence[int], rows: Sequence[int] | None, train: TrainConfig, seed: int, world_size: int
) -> list[list[list[Batch]]]:
    """The pairs of every step, micro-step and rank: `[step][micro-step][rank]` -> indices of pairs.

    The pairs of a step depend only on seed, epoch and step. The world size only affects how they are divided into
    micro-batches. The last step of an epoch may hold fewer pairs.
    """
    import torch

    steps = []
    for epoch in range(train.num_train_epochs):
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed * 1000 + epoch)).tolist()
        for start in range(0, len(order), train.global_batch_size):
            step = order[start : start + train.global_batch_size]
            own_rows = [rows[i] for i in step] if rows else None
            cut = micro_batches([lengths[i] for i in step], train.tokens_at_once, world_size, own_rows)
            steps.append([[[step[i] for i in batch] for batch in micro_step] for micro_step in cut])
    return steps[: train.max_steps]
