"""Candidates whose order is known without a reward: an answer and its translation between English and a language.

Answers are better in English than elsewhere, so a translated English answer beats the model's own one, and in English
its own answer beats a translated one.

Source: language imbalance driven rewarding, arXiv 2410.08964.
"""

from xlr import detection
from xlr.data.quality import repetition
from xlr.languages import ENGLISH
from xlr.records import Response, Score
from xlr.run.context import Context
from xlr.run.manifests import rows_of
from xlr.sampling.responses import row_seed


def candidates(context: Context, iteration: int, lang: str) -> list[Score]:
    """The responses in one language and the translations into it. Their reward is 1 for those that are better, or 0.

    Translations have numbers after those of the samples.
    """
    config, folder = context.config.at(iteration), context.run.iteration(iteration)
    own = rows_of(folder / "responses", Response, part=lang)
    translated = rows_of(folder / "translations", Response, part=lang)
    if lang == ENGLISH:  # from several languages: which one is rejected is drawn for each prompt
        translated.sort(key=lambda row: row_seed(config.seed, iteration, lang, row.id, row.sample))
    number, in_english = config.generate.num_samples, lang == ENGLISH
    rated = [(row, row.sample, in_english) for row in own]
    rated += [(row, number + row.sample, not in_english) for row in translated]
    rated = [one for one in rated if one[0].response.strip()]
    languages = detection.detect(((lang, row.response) for row, _, _ in rated), config.trained_languages)
    return [
        Score(
            row.id,
            lang,
            sample,
            row.response,
            row.finish_reason,
            scored_text="",
            logp_policy=None,
            logp_reference=None,
            reward=float(better),
            num_tokens=len(row.token_ids),
            num_chars=len(row.response),
            detected_lang=language,
            repetition=repetition(row.token_ids),
        )
        for (row, sample, better), language in zip(rated, languages, strict=True)
    ]
