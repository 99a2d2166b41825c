"""Steps 5 and 6: model -> answers -> verdicts -> win rates."""
