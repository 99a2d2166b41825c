"""The registry of stages, in the order in which an iteration runs them.

A new stage is a module with the functions of `pipeline.StageModule`, and one entry here. The command line, `xlr run`,
the Slurm jobs, the status, the report and the doctor read this list. It imports no other module, which keeps
`xlr --help` quick.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageKind:
    """One kind of stage. A run has it once for each iteration or model that its module names."""

    name: str
    """Its command, and its name everywhere else."""
    module: str
    """What implements it: a module with the functions of `pipeline.StageModule`."""
    artefact: str
    """The folder that it makes in the iteration's folder."""
    job: str
    """The kind of Slurm job that runs it by default."""
    help: str
    """One line for the command line."""
    in_ranks: bool = False
    """Whether it computes in training ranks; the others compute in Ray workers."""
    only_start: bool = False
    """Whether it belongs to iteration 0 alone, so that its command takes no iteration."""
    default: int = 1
    """The iteration that its command takes without being told."""
    any_model: bool = False
    """Whether it also belongs to the models of evaluate.models, so that its command takes a name too."""
    comes_last: bool = False
    """Whether it runs after all iterations: it may compare any two models, or ask a judge that does not answer."""
    by_judge: bool = False
    """Whether its folder has one folder for each judge."""


STAGES = (
    StageKind(
        "generate",
        "xlr.sampling.responses",
        "responses",
        "annotate",
        "Stage 1: sample responses in every language.",
    ),
    StageKind(
        "translate",
        "xlr.sampling.translations",
        "translations",
        "annotate",
        "Stage 1b: translate the responses, if pairs are made by translations.",
    ),
    StageKind(
        "score",
        "xlr.rewarding.scores",
        "scores",
        "annotate",
        "Stage 2: score the responses with the reward of score.reward.",
    ),
    StageKind(
        "pair",
        "xlr.rewarding.pairs",
        "pairs",
        "annotate",
        "Stage 3: turn scores into preference pairs.",
    ),
    StageKind(
        "reference",
        "xlr.training.reference",
        "reference",
        "annotate",
        "Before training with reference_mode cached: compute the reference's log-probabilities of all pairs.",
    ),
    StageKind(
        "align",
        "xlr.training.align",
        "model",
        "train",
        "Stage 0: train the English-aligned model from the initial one, on English preferences.",
        in_ranks=True,
        only_start=True,
        default=0,
    ),
    StageKind(
        "train",
        "xlr.training.model",
        "model",
        "train",
        "Stage 4: fine-tune on the pairs. Starts its own processes unless a launcher or srun did.",
        in_ranks=True,
    ),
    StageKind(
        "evaluate",
        "xlr.evaluation.answers",
        "eval",
        "evaluate",
        "Stage 5: evaluate a model on held-out prompts and preferences.",
        default=0,
        any_model=True,
    ),
    StageKind(
        "check",
        "xlr.evaluation.checked",
        "checked",
        "evaluate",
        "Stage 5b: have a model answer questions whose right answers are known.",
        default=0,
        any_model=True,
    ),
    StageKind(
        "converse",
        "xlr.dialogues.answers",
        "dialogues",
        "evaluate",
        "Stage 5c: have a model answer questions of several turns, such as those of MT-Bench.",
        default=0,
        any_model=True,
    ),
    StageKind(
        "rate",
        "xlr.dialogues.ratings",
        "ratings",
        "evaluate",
        "Stage 5d: have the judge rate each of these answers from 1 to 10.",
        default=0,
        any_model=True,
        comes_last=True,
        by_judge=True,
    ),
    StageKind(
        "benchmark",
        "xlr.benchmarking.benchmarks",
        "benchmarks",
        "evaluate",
        "Stage 5e: run benchmarks of multiple choice with lm-eval.",
        default=0,
    ),
    StageKind(
        "judge",
        "xlr.evaluation.judgements",
        "judgements",
        "evaluate",
        "Stage 6: have a judge compare a model's held-out answers with the baseline's.",
        any_model=True,
        comes_last=True,
        by_judge=True,
    ),
)

KINDS = {kind.name: kind for kind in STAGES}
