"""`xlr try`: answers of a run's models to one instruction, with colours that say what the reward likes in them."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from xlr.chat.pieces import END, Pieces
from xlr.data.conversations import with_system
from xlr.errors import UserError
from xlr.foreign.texts import shown
from xlr.model.quiet import quiet
from xlr.records import INITIAL, ModelKey
from xlr.run.context import Context
from xlr.run.files import write_text
from xlr.sampling.responses import row_seed, sample_settings
from xlr.settings.generateconfig import GenerateConfig
from xlr.terminal.console import console
from xlr.terminal.tokens import token_background, token_style

_PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:16px/1.6 system-ui;margin:2rem auto;max-width:75rem;padding:0 1rem}}
main{{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:2rem}}p{{white-space:pre-wrap}}
:root{{color-scheme:light dark}}span{{border-radius:3px}}</style><h1>{title}</h1><p>{note}</p><main>{answers}</main>
"""
_NOTE = (
    "Green tokens are likelier under the model than under the initial model, red ones less likely; ■ is the end of the "
    "answer. Their log-ratios sum to the implicit reward."
)


@dataclass(frozen=True)
class Answer:
    """A model's answer, piece by piece."""

    model: str
    pieces: list[tuple[str, float]]
    """Text of a token (or of several, where they make one character) and its log-ratio in nats."""
    reward: float
    """Sum of the log-ratios with that of the terminator."""
    finished: bool
    """Whether it ended by itself."""


@quiet()
def answer(context: Context, instruction: str, lang: str, models: Sequence[ModelKey], seed: int) -> list[Answer]:
    """Sample an answer of each model, printing its tokens as they come.

    Args:
        lang: the language whose system message the models get.

    Raises:
        UserError: a model is not finished, or cannot be opened.
    """
    import torch

    from xlr.model.weights import load_causal_lm, resolve_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(context.config.model.dtype, device)

    def load(model: ModelKey) -> Any:
        return load_causal_lm(context.require_model(model), dtype, "sdpa").to(device)

    initial, found = load(INITIAL), []
    for model in models:
        console.print(f"\n{name_of(model)}")
        found.append(_answer(context, instruction, lang, model, load(model), initial, seed))
        ending = "" if found[-1].finished else ", cut off at evaluate.max_new_tokens"
        console.print(f"\n  reward {found[-1].reward:+.1f} nats{ending}")
    return found


def name_of(model: ModelKey) -> str:
    """A model's name for people."""
    return f"π{model}" if isinstance(model, int) else model


def _answer(
    context: Context, instruction: str, lang: str, model: ModelKey, policy: Any, initial: Any, seed: int
) -> Answer:
    from xlr.model.streaming import stream

    section, encoder = context.config.evaluate, context.encoder
    generate = GenerateConfig(
        temperature=section.temperature, top_p=section.top_p, max_new_tokens=section.max_new_tokens
    )
    settings = sample_settings(generate, encoder, context.model(model))
    texts = Pieces(encoder)
    pieces: list[tuple[str, float]] = []
    reward, finished = 0.0, False
    row = row_seed(seed, 0, "", instruction, 0)
    asked = with_system([{"role": "user", "content": instruction}], context.config.model.system_prompt, lang)
    for step in stream(policy, initial, encoder.prompt_of(asked), settings, row):
        reward += step.log_ratio
        if step.token in settings.stop_ids:
            finished = True
            pieces += [*texts.rest(), (END, step.log_ratio)]
            console.print(Text(END, token_style(step.log_ratio)), end="")
            break
        if piece := texts.add(step.token, step.log_ratio):
            pieces.append(piece)
            console.print(Text(shown(piece[0]), token_style(piece[1])), end="")
    if not finished:
        pieces += texts.rest()
    return Answer(name_of(model), pieces, reward, finished)


def write_page(path: Path, instruction: str, answers: Sequence[Answer]) -> None:
    """Write the answers side by side as one HTML page without scripts.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [
        f"<section><h2>{html.escape(own.model)}</h2><p>{_spans(own)}</p><p>{own.reward:+.1f} nats</p></section>"
        for own in answers
    ]
    page = _PAGE.format(title=html.escape(instruction), note=_NOTE, answers="".join(parts))
    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def _spans(own: Answer) -> str:
    return "".join(
        f'<span title="{ratio:+.2f} nats" style="background:{token_background(ratio)}">{html.escape(text)}</span>'
        for text, ratio in own.pieces
    )
