"""The work of each stage by formula: operations, seconds, memory of a process, and what it leaves on disk."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from xlr.languages import ENGLISH
from xlr.maths import memory, operations
from xlr.maths.batching import micro_batches
from xlr.maths.memory import FP32, Zero
from xlr.planning.lengths import Lengths
from xlr.planning.setting import Estimate, Setting
from xlr.records import START, DType
from xlr.settings.scoreconfig import IMPLICIT
from xlr.settings.trainconfig import TrainConfig
from xlr.zero import fitting

_ENGINE_SECONDS = 180  # of vLLM: compilation and CUDA graphs
_ENGINE_BYTES = 2e9  # of vLLM's activations and CUDA graphs
# Of the mean length, what a response on its way has so far: half of it, and long ones are on their way for longer.
_ON_THE_WAY = math.exp(operations.SPREAD**2) / 2
_ENGINE_STEP_SECONDS = 0.0005  # of a step beside its arithmetic
_PARALLEL = 0.85  # of the rate that several GPUs of an engine have together: they exchange what each layer computes
_ENGINE_EFFICIENCY = 0.9  # benchmarks/sampling_plan.py
_STEP_SECONDS = 0.05  # of a training step: metrics, clipping, the optimizer's launches
_SELECTIVE = 1.1  # operations and recomputation of norms and activations, with selective checkpointing
_OVERLAPPED = 0.5  # share of the exchange between ranks that computation hides
_SAVE_RATE = 1e9  # bytes a second to a shared file system
_TRANSLATE_TOKENS = 30  # of the instruction to translate a text
_PAIRED = 0.95  # share of the prompts that give a pair
# Bytes of a row's token in compressed Parquet: its text and its id.
_RESPONSE_BYTES, _SCORE_BYTES, _PAIR_BYTES = 6, 7, 5


def _generate(own: Setting) -> Estimate:
    samples, generate = own.config.generate.num_samples, own.config.generate
    rows = [(one, one.prompts * samples) for one in own.lengths.values()]
    found = _sampled(own, rows, generate.max_new_tokens)
    return replace(found, disk=found.tokens * _RESPONSE_BYTES)


def _sampled(own: Setting, rows: Sequence[tuple[Lengths, int]], most: int) -> Estimate:
    """Responses to prompts: the lengths in each language, and the number of responses."""
    machines, shape, width = own.machines, own.shape, own.width
    tokens = sum(count * one.response for one, count in rows)
    count = sum(number for _, number in rows)
    if not count:
        return Estimate()
    mean, prompt = tokens / count, sum(number * one.prompt for one, number in rows) / count
    keys = sum(n * operations.keys_of_answers(one.prompt, one.response, 1) for one, n in rows)
    work = operations.forward(shape, tokens + count * prompt, keys)
    rate = machines.rate_in(width) * machines.shares.products
    load = machines.shares.start_seconds + own.weights / machines.shares.load_rate
    if own.config.generate.backend == "vllm":
        parallel = own.config.generate.tensor_parallel_size
        engines = max(machines.count // parallel, 1)
        wanted = min(own.config.generate.max_num_seqs, max(count // engines, 1))
        needed, held = _engine_memory(own, parallel, int(prompt) + most, prompt + _ON_THE_WAY * mean)
        slots = min(wanted, held)
        step = operations.decoding_step(
            shape, slots, prompt + mean / 2, width, rate * parallel, machines.bandwidth * parallel, _ENGINE_STEP_SECONDS
        )
        efficiency = _ENGINE_EFFICIENCY * (_PARALLEL if parallel > 1 else 1)
        seconds = tokens / slots * step / engines / efficiency
        task = seconds * engines * own.config.generate.batch_size / count
        full = f"the cache holds about {held:,.0f} of {wanted:,} responses at a time" if held < wanted else ""
        return Estimate(tokens, work, seconds, load + _ENGINE_SECONDS, needed, unit=min(task, seconds), note=full)
    batch = min(own.config.generate.batch_size, count)
    steps = operations.longest(mean, batch, most)
    overhead = shape.layers * machines.shares.step_seconds
    step = operations.decoding_step(shape, batch, prompt + steps / 2, width, rate, machines.bandwidth, overhead)
    seconds = math.ceil(count / batch / machines.count) * steps * step
    needed = {**memory.sampling(shape, batch, int(prompt + steps), width), "process": machines.beside}
    return Estimate(tokens, work, seconds, load, needed, unit=steps * step)


def _translate(own: Setting) -> Estimate:
    """Every English response is translated into each other language, every other one into English."""
    samples, others = own.config.generate.num_samples, [one for lang, one in own.lengths.items() if lang != ENGLISH]
    # Each response is the prompt of its translation; it is as long as a response in the other language.
    pairs = [pair for one in others for pair in ((own.lengths[ENGLISH], one), (one, own.lengths[ENGLISH]))]
    texts = [(replace(to, prompt=_TRANSLATE_TOKENS + of.response), of.prompts * samples) for of, to in pairs]
    found = _sampled(own, texts, own.config.generate.max_new_tokens)
    return replace(found, disk=found.tokens * _RESPONSE_BYTES)


def _engine_memory(own: Setting, gpus: float, most: int, mean: float) -> tuple[dict[str, float], float]:
    """What one GPU of a vLLM engine holds, and how many responses on their way its cache holds.

    Args:
        gpus: of the engine.
        most: tokens of the longest response with its prompt, which the cache must hold.
        mean: tokens that one on its way has so far, with its prompt.
    """
    weights = own.weights / gpus
    token = memory.cache_of_token(own.shape, own.width) / gpus
    free = own.config.generate.gpu_memory_utilization * own.machines.memory - weights - _ENGINE_BYTES
    cache = max(free, most * token)
    return {"weights": weights, "activations": _ENGINE_BYTES, "keys and values": cache}, cache / token / mean


def _score(own: Setting) -> Estimate:
    samples, rewards = own.config.generate.num_samples, own.config.score.weights
    known = [one for lang, one in own.lengths.items() if not ("translate" in rewards and lang == ENGLISH)]
    asked = [(one.asked, one.response, samples, one.prompts) for one in known]
    parts = [_scored(own, asked, 2) for mode in rewards if mode in IMPLICIT] or [Estimate()]
    if own.rater is not None:
        rated = _scored(replace(own, shape=own.rater), asked, 1)
        if not own.config.ray.one_model_at_a_time:  # a worker keeps the model that it used before
            beside = own.machines.width(own.config.scoring_dtype) * own.shape.parameters
            rated = replace(rated, memory={**rated.memory, "weights": rated.memory["weights"] + beside})
        parts.append(rated)
    if "translate" in rewards:
        # Each response is the prompt of its translation, which is as long.
        texts = [(replace(one, prompt=one.prompt + one.response), one.prompts * samples) for one in known]
        parts.append(_sampled(own, texts, own.config.generate.max_new_tokens))
    tokens = sum(one.prompts * samples * one.response for one in known)
    return Estimate(
        tokens,
        sum(part.operations for part in parts),
        0.0 if "judge" in rewards else sum(part.seconds for part in parts),  # grading cannot be timed
        sum(part.fixed for part in parts),
        max(parts, key=lambda part: part.peak).memory,
        disk=tokens * _SCORE_BYTES,
        note=_asked(own, sum(one.prompts * samples for one in known)) if "judge" in rewards else "",
    )


def _scored(
    own: Setting, asked: Sequence[tuple[float, float, int, float]], models: int, dtype: DType | None = None
) -> Estimate:
    """Answers scored after their prompts.

    Args:
        asked: tokens of a prompt, of each answer, the number of answers, the number of such prompts.
        models: that score them.
        dtype: the precision; None is that of scoring.
    """
    machines, shape = own.machines, own.shape
    width = machines.width(dtype or own.config.scoring_dtype)
    tokens = sum(count * (prompt + answers * answer) for prompt, answer, answers, count in asked)
    keys = sum(count * operations.keys_of_answers(prompt, answer, answers) for prompt, answer, answers, count in asked)
    work = models * operations.forward(shape, tokens, keys)
    together = 1 if own.config.ray.one_model_at_a_time else models
    needed = memory.scoring(shape, together, own.config.score.batch_tokens, own.chunk, width)
    return Estimate(
        tokens,
        work,
        work / (machines.count * machines.rate_in(width) * machines.shares.scoring),
        machines.shares.start_seconds + models * width * shape.parameters / machines.shares.load_rate,
        {**needed, "process": machines.beside},
    )


def _pair(own: Setting) -> Estimate:
    tokens = sum(2 * one.prompts * one.response for one in own.lengths.values())
    rows = sum(one.prompts for one in own.lengths.values()) * own.config.generate.num_samples
    return Estimate(seconds=rows * 2e-5, fixed=1, disk=tokens * _PAIR_BYTES)


def _pairs(own: Setting) -> list[tuple[float, float, float]]:
    """Tokens of a prompt and of an answer, and the number of pairs, in each language of a training."""
    if own.iteration == START:
        return [(one.prompt, one.response, one.prompts) for one in own.preferences]
    assert isinstance(own.iteration, int)  # models of evaluate.models are not trained
    pairing = own.config.pair
    of_prompt = min(pairing.per_prompt, own.config.generate.num_samples // (1 if pairing.by == "translations" else 2))
    times = _PAIRED * max(of_prompt, 1) * (1 + own.training.replay * (own.iteration - 1))
    english = [(one.prompt, one.response, own.training.replay_english * one.prompts) for one in own.preferences]
    return [
        *(
            (one.prompt, one.response, times * pairing.share_kept(lang) * one.prompts)
            for lang, one in own.lengths.items()
        ),
        *english,
    ]


def _reference(own: Setting) -> Estimate:
    asked = [(prompt, answer, 2, count) for prompt, answer, count in _pairs(own)]
    return replace(_scored(own, asked, 1, own.config.model.dtype), disk=1e6)


def _train(own: Setting) -> Estimate:
    train, machines, shape, width = own.training, own.machines, own.shape, own.width
    pairs = _pairs(own)
    count = sum(number for _, _, number in pairs)
    steps = max(math.ceil(count / train.global_batch_size) * train.num_train_epochs, 1)
    steps = min(steps, train.max_steps or steps)
    share = min(steps * train.global_batch_size / max(count, 1), train.num_train_epochs)
    tokens = share * sum(number * (prompt + 2 * answer) for prompt, answer, number in pairs)
    keys = share * sum(number * operations.keys_of_answers(prompt, answer, 2) for prompt, answer, number in pairs)
    once = operations.forward(shape, tokens, keys)
    passes = {False: 3.0, "selective": 3.0 * _SELECTIVE, True: 4.0}[train.gradient_checkpointing]
    work = once * (passes + (train.used_reference == "frozen") + 2 * ("kto" in train.loss_types))  # kto: others' too
    slowest, micro_steps = _balance(train, pairs, machines.count)
    zero = fitting.zero_of(train, width, shape)
    compute = work / tokens * slowest / (machines.rate_in(width) * machines.shares.training)
    exchanged = _exchange_seconds(own, zero, micro_steps)
    hidden = min(_OVERLAPPED * exchanged, compute)
    update = 4 * FP32 * shape.parameters / machines.count / machines.bandwidth
    step = compute + exchanged - hidden + update + _STEP_SECONDS
    seconds = steps * step
    models = 3 if train.used_reference == "frozen" else 2  # reference, policy, the exported model once more
    checkpoint = memory.CHECKPOINT_BYTES * shape.parameters
    saves = seconds / 60 / train.save_minutes if train.save_minutes else 0.0
    saves = max(saves, steps / train.save_steps if train.save_steps else 0.0)
    needed = memory.peak(
        shape,
        machines.count,
        train.tokens_at_once,
        train.gradient_checkpointing,
        train.used_reference == "frozen",
        own.chunk,
        zero,
        width,
    )
    return Estimate(
        tokens,
        work,
        seconds + int(saves) * checkpoint / _SAVE_RATE,
        machines.shares.start_seconds + models * own.weights / machines.shares.load_rate,
        {**needed, "process": machines.beside},
        own.weights,
        (1 + train.save_total_limit if saves >= 2 else 1) * checkpoint,
        step + checkpoint / _SAVE_RATE,
    )


def _balance(train: TrainConfig, pairs: Sequence[tuple[float, float, float]], ranks: int) -> tuple[float, int]:
    """Tokens that the slowest rank computes in a step, and the micro-steps of a step; of pairs that are drawn."""
    draw = random.Random(0)
    weights = [number for _, _, number in pairs]
    drawn = draw.choices(pairs, weights, k=min(train.global_batch_size, 4096))

    def length(prompt: float, answer: float) -> int:
        factors = (draw.lognormvariate(-(operations.SPREAD**2) / 2, operations.SPREAD) for _ in range(2))
        return int(min(prompt + sum(answer * factor for factor in factors), 2 * train.max_length)) + 1

    lengths = [length(prompt, answer) for prompt, answer, _ in drawn]
    cut = micro_batches(lengths, train.tokens_at_once, ranks)
    return float(sum(max(sum(lengths[i] for i in batch) for batch in micro_step) for micro_step in cut)), len(cut)


def _exchange_seconds(own: Setting, zero: Zero, micro_steps: int) -> float:
    """Seconds of a step in which weights and gradients go between the ranks.

    In stage 3 the weights are gathered for each forward and each backward pass, and for the reference; gradients are
    reduced for each micro-step. With hpZ the backward pass gathers them within the node. In stage 2 the weights are
    gathered once a step.
    """
    ranks, train = own.machines.count, own.training
    if ranks == 1:
        return 0.0
    others = (train.used_reference == "frozen") + 2 * ("kto" in train.loss_types)  # passes beside the policy's own
    moved = own.weights * (ranks - 1) / ranks
    within = micro_steps if zero.stage == 3 and zero.secondary > 1 else 0
    times = micro_steps * (3 + others) - within if zero.stage == 3 else micro_steps * (1 + others) + 1
    return times * moved / own.machines.exchange + within * moved / own.machines.hardware.links


def _evaluate(own: Setting) -> Estimate:
    most = own.config.evaluate.max_new_tokens
    answered = _sampled(own, [(one, one.prompts) for one in own.held_out], most)
    sampled = [answered]
    scored = [
        _scored(own, [(one.asked, one.response, 1, one.prompts) for one in own.held_out], 2),
        # Preferences under two instructions; pi_I scores them once, in the evaluation of pi^0.
        _scored(
            own,
            [(one.asked, one.response, 2, 2 * one.prompts) for one in own.compared],
            2 if own.iteration == START else 1,
        ),
    ]
    if own.rater is not None and own.iteration == START:
        rated = [(one.asked, one.response, 2, one.prompts) for one in own.compared]
        scored.append(_scored(replace(own, shape=own.rater), rated, 1))
    if "translate" in own.config.score.weights:
        # Each answer is the prompt of its translation, which is as long.
        texts = [(replace(one, prompt=one.prompt + one.response), 2 * one.prompts) for one in own.compared]
        sampled.append(_sampled(own, texts, own.config.generate.max_new_tokens))
        scored.append(_scored(own, [(one.prompt, one.response, 2, one.prompts) for one in own.compared], 2))
    parts = [*sampled, *scored]
    return Estimate(
        sum(part.tokens for part in parts),
        sum(part.operations for part in parts),
        sum(part.seconds for part in parts),
        max(part.fixed for part in parts),
        max(parts, key=lambda part: part.peak).memory,
        answered.tokens * (_RESPONSE_BYTES + _SCORE_BYTES),
        parts={
            "generate": sum(part.seconds for part in sampled),
            "score": sum(part.seconds for part in scored),
        },
    )


def _check(own: Setting) -> Estimate:
    most = own.config.evaluate.checked.max_new_tokens if own.config.evaluate.checked else 0
    found = _sampled(own, [(one, one.prompts) for one in own.checked], most)
    return replace(found, disk=found.tokens * _RESPONSE_BYTES)


def _converse(own: Setting) -> Estimate:
    most = own.config.evaluate.turns.max_new_tokens if own.config.evaluate.turns else 0
    found = _sampled(own, [(one, one.prompts) for one in own.turns], most)
    return replace(found, disk=found.tokens * _RESPONSE_BYTES)


def _rate(own: Setting) -> Estimate:
    return Estimate(note=_asked(own, sum(one.prompts for one in own.turns)))


def _benchmark(own: Setting) -> Estimate:
    tasks = ", ".join(own.config.evaluate.benchmarks.tasks) if own.config.evaluate.benchmarks else ""
    return Estimate(note=f"{tasks}: their questions are known to lm-eval alone, not timed")


def _judge(own: Setting) -> Estimate:
    judge = own.config.judge
    questions = sum(one.prompts for one in own.held_out) * (2 if judge.both_orders else 1)
    return Estimate(note=_asked(own, questions))


def _asked(own: Setting, questions: int) -> str:
    where = {"openai": "the endpoint", "transformers": "a model in the workers"}[own.config.judge.backend]
    return f"{questions:,} questions to {where}, not timed"


ESTIMATES: dict[str, Callable[[Setting], Estimate]] = {  # by the name of the stage
    "generate": _generate,
    "translate": _translate,
    "score": _score,
    "pair": _pair,
    "reference": _reference,
    "align": _train,
    "train": _train,
    "evaluate": _evaluate,
    "check": _check,
    "converse": _converse,
    "rate": _rate,
    "benchmark": _benchmark,
    "judge": _judge,
}
