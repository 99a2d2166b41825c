"""Steps 5 and 6: model -> answers -> verdicts -> win rates.

Reads models, held-out prompts and preferences; writes `eval/` and `judgements/` of each model.
"""
