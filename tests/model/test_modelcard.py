"""The README.md of a trained model."""

import pytest
import yaml

from xlr.foreign.modelcard import model_card


@pytest.mark.parametrize("base", ["org/llama-3-8b", "/models/llama-3-8b/"])
def test_the_card_has_the_hub_s_front_matter_and_names_no_folder(base: str) -> None:
    settings, facts = {"train.beta": 0.1}, {"pairs": 15_000, "steps": 469}
    text = model_card(2, base, ["de", "en"], settings, facts, {"loss": 0.61234567, "perf/mfu": 0.4, "eval_loss": 0.7})
    front = yaml.safe_load(text.split("---")[1])
    assert front["language"] == ["de", "en"]
    assert front.get("base_model") == ("org/llama-3-8b" if base == "org/llama-3-8b" else None)
    assert "# llama-3-8b, iteration 2" in text
    assert "after 2 iterations of [Implicit Cross-Lingual Rewarding]" in text
    for row in ("| `pairs` | 15000 |", "| `train.beta` | 0.1 |", "| `loss` | 0.61235 |", "| `eval_loss` | 0.7 |"):
        assert row in text
    assert "mfu" not in text, "the same training gives the same card on any machine"
    assert "/models" not in text


def test_the_card_names_the_revision_apart_from_the_model_and_no_path_of_a_setting() -> None:
    text = model_card(1, "org/m@v1/x", ["en"], {"train.ds_config": "/home/me/secret/mine.json"}, {}, {})
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "org/m"
    assert "`m` at revision `v1/x` after 1 iterations" in text
    assert "# m, iteration 1" in text
    assert "| `train.ds_config` | mine.json |" in text
    assert "/home" not in text


def test_the_card_of_the_align_stage_names_english_preferences() -> None:
    assert "aligned on English preferences" in model_card(0, "org/m", ["en"], {}, {}, {})


@pytest.mark.parametrize(
    ("loss", "words"), [("sigmoid", "DPO"), ("simpo", "simpo"), (("sigmoid", "hinge"), "DPO + hinge")]
)
def test_the_card_names_the_losses(loss: object, words: str) -> None:
    text = model_card(1, "org/m", ["en"], {"train.loss_type": loss}, {}, {})
    assert f"full fine-tuning with {words} and NLL by xlr" in text
