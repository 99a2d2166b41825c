"""What a plan is made from: prompts, preferences and the model's sizes, each read once."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from xlr import pipeline
from xlr.data.preferences import load_parallel_preferences, load_preferences
from xlr.data.prompts import load_held_out
from xlr.data.turnrows import load_dialogues
from xlr.dialogues import answers as conversing
from xlr.foreign.shapes import read_shape
from xlr.pipeline import Stage
from xlr.planning import planfile
from xlr.planning.lengths import ASSUMED, Lengths, lengths, mean_tokens, of_preferences
from xlr.planning.machines import Machines
from xlr.planning.planfile import Probe
from xlr.planning.setting import Setting
from xlr.records import INITIAL, START, Prompt
from xlr.run.context import Context


class Planner:
    """Reads the data of a run once, and estimates its stages.

    Args:
        machines_of: what a stage runs on.
        assumed: tokens of a response in English; None takes what the run or a probe has sampled, or `ASSUMED`.
        probed: what a probe found; None takes the run's last one, if there was one.

    Raises:
        UserError: prompts, preferences, tokenizer or the model's configuration cannot be read.
    """

    def __init__(
        self,
        context: Context,
        machines_of: Callable[[Stage], Machines],
        assumed: float | None = None,
        probed: Probe | None = None,
    ):
        self.context, self._machines_of, self._assumed = context, machines_of, assumed
        self.probed = probed or planfile.last_probe(context.run.path)
        self.stages = pipeline.stages(context.config)
        self.model = context.model(START if context.config.model.aligned else INITIAL)
        self.shape = read_shape(self.model)
        self._rater = read_shape(context.reward_model) if context.config.score.model else None
        self._lengths: dict[int, tuple[dict[str, Lengths], str]] = {}
        evaluate = context.config.evaluate
        self._held_out = list(self._questions(context.held_out, evaluate.max_new_tokens))
        asked = context.pinned(evaluate.checked)
        langs = context.config.evaluated_languages
        questions = load_held_out(asked, langs, context.config.model.system_prompt) if asked else {}
        self._checked = list(self._questions(questions, asked.max_new_tokens if asked else 0))
        self._turns = list(self._of_turns()) if evaluate.turns else []
        given = context.pinned(context.config.align.preferences)
        system = context.config.model.system_prompt
        aligned = load_preferences(given, system) if given and context.config.model.aligned is None else []
        self._preferences = [of_preferences(context, aligned)] if aligned else []
        compared = context.pinned(context.config.evaluate.preferences)
        sets = load_parallel_preferences(compared, system) if compared else {}
        self._compared = [of_preferences(context, [one.own for one in own]) for own in sets.values()]

    def lengths(self, iteration: int) -> tuple[dict[str, Lengths], str]:
        """The lengths in each language of an iteration. Iteration 0 samples nothing; it gets those of iteration 1."""
        iteration = max(iteration, 1)
        if iteration not in self._lengths:
            probed = self.probed["responses"] if self.probed else {}
            self._lengths[iteration] = lengths(self.context, iteration, self._assumed, probed)
        return self._lengths[iteration]

    def setting(self, stage: Stage) -> Setting:
        """What a stage is planned from."""
        iteration = stage.iteration if isinstance(stage.iteration, int) else START
        return Setting(
            self.context.config.at(iteration),
            stage.iteration,
            self.shape,
            self.lengths(iteration)[0],
            self._held_out,
            self._preferences,
            self._compared,
            self._machines_of(stage),
            self._checked,
            self._rater,
            self._turns,
        )

    def _of_turns(self) -> Iterator[Lengths]:
        """The answers to each turn in each language, after those to the turns before it."""
        trained, _ = self.lengths(1)
        most = conversing.questions_of(self.context).max_new_tokens
        for lang in self.context.config.evaluated_languages:
            dialogues = load_dialogues(conversing.questions_of(self.context), lang)
            response = min(trained[lang].response if lang in trained else float(self._assumed or ASSUMED), most)
            for number in range(max(len(one.turns) for one in dialogues)):
                own = [one for one in dialogues if len(one.turns) > number]
                asked = [conversing.prompt(self.context, one, [""] * number, self.context.encoder) for one in own]
                prompt = mean_tokens(self.context, asked) + number * response
                yield Lengths(len(own), prompt, prompt, response)

    def _questions(self, prompts: Mapping[str, Sequence[Prompt]], most: int) -> Iterator[Lengths]:
        """Held-out prompts. Their answers are expected to be as long as those of training prompts, up to `most`."""
        trained, _ = self.lengths(1)
        for lang in self.context.config.evaluated_languages:
            if own := prompts.get(lang):
                prompt = mean_tokens(self.context, own)
                response = trained[lang].response if lang in trained else float(self._assumed or ASSUMED)
                yield Lengths(len(own), prompt, prompt, min(response, most))
