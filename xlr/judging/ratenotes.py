"""What a win rate may be compared with, in words."""


def comparable(length_control: str) -> str:
    """How length-controlled rates were fitted, and what they may be compared with.

    Five public annotation files give up to 11.6 points more or less without AlpacaEval's table of difficulties.

    Args:
        length_control: AlpacaEval's name of the regression, as in `WinRates`.
    """
    if length_control == "length_controlled_v1":
        return f"{length_control}, as AlpacaEval's leaderboard"
    return (
        f"{length_control}, without AlpacaEval's table of difficulties (judge.difficulty): comparable within a run "
        "only, as published rates may differ by more than 10 points"
    )
