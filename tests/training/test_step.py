"""What MFU counts."""

from tests import tiny
from xlr.training.step import looked_up


def test_an_input_embedding_is_counted_only_if_it_is_the_output_embedding_too() -> None:
    untied, tied = tiny.make_model(50, tied=False), tiny.make_model(50, tied=True)
    assert looked_up(untied) == untied.get_input_embeddings().weight.numel()
    assert looked_up(tied) == 0
