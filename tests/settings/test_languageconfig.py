"""Lists of languages: tags in any spelling, names of one's own, and the settings that they leave."""

from pathlib import Path
from typing import Any

import pytest

from tests.settings.test_config import changed
from xlr import configfile
from xlr.errors import UserError
from xlr.run.identity import as_recorded
from xlr.run.languagenames import language_names
from xlr.settings.deciding import settings

TREE = {"model": {"initial": "a", "aligned": "b"}, "prompts": {"path": "p"}}


def load(tmp_path: Path, languages: Any, **others: Any) -> Any:
    (tmp_path / "a.yaml").write_text(configfile.yamlfiles.dump(TREE | {"languages": languages} | others))
    return configfile.load(tmp_path / "a.yaml")


def test_tags_are_written_as_the_registry_writes_them(tmp_path: Path) -> None:
    config = load(tmp_path, ["en", "pt-br", "ZH-hant", {"tag": "HA", "name": "Hausa of Kano"}])
    assert config.trained_languages == ("en", "pt-BR", "zh-Hant", "ha")
    assert [*map(config.language_name, config.trained_languages)] == [
        *("English", "Portuguese (Brazil)", "Chinese (Traditional)", "Hausa of Kano")
    ]
    (tmp_path / "b.yaml").write_text(configfile.dump(config))
    assert configfile.load(tmp_path / "b.yaml") == config


def test_a_name_counts_wherever_the_language_is_evaluated(tmp_path: Path) -> None:
    named = {"tag": "x-mine", "name": "My Language"}
    config = load(tmp_path, ["en", "es"], evaluate={"languages": ["en", named]})
    assert config.evaluated_languages == ("en", "x-mine")
    assert config.all_languages == ("en", "es", "x-mine")
    assert config.language_name("x-mine") == "My Language"


def test_plain_tags_leave_the_settings_of_earlier_runs() -> None:
    assert as_recorded(settings(changed())["languages"]) == ["en", "es"]
    assert language_names(changed(), ["en", "es", "nb"]) == {}


def test_a_name_decides_what_instructions_decide() -> None:
    hausa, other = ({"tag": "ha", "name": name} for name in ("Hausa", "Hausa of Kano"))
    plain, same, renamed = (changed(languages=["en", one]) for one in ("ha", hausa, other))
    assert as_recorded(settings(renamed)["languages"]) == ["en", "ha (Hausa of Kano)"]
    digests = [
        {name: own.digest() for name, own in language_names(config, config.trained_languages).items()}  # type: ignore[union-attr]
        for config in (plain, same, renamed)
    ]
    assert digests == [{"name of ha": "Hausa"}, {"name of ha": "Hausa"}, {"name of ha": "Hausa of Kano"}]


@pytest.mark.parametrize(
    ("languages", "said"),
    [
        (["en", "xx"], 'languages.1: "xx" is no language tag of BCP 47'),
        (["en", "hausa"], "did you mean ha (Hausa)?"),
        (["en", {"tag": "hausa", "name": "Hausa"}], 'languages.1.tag: "hausa" is no language tag'),
        (["en", {"tag": "ha"}], "languages.1.name: not set"),
        (["en", {"tag": "ha", "name": " "}], "languages.1.name: is empty"),
        (["en", {"tag": "ha", "name": "Ha\u0007usa"}], "control character"),
        (["en", {"tag": "ha", "nme": "Hausa", "name": "Hausa"}], "languages.1.nme: unknown key; did you mean name?"),
        (["en", "x-mine"], 'languages.1: "x-mine" has no English name; give it one: {tag: x-mine, name: ...}'),
        (["en", False], "languages.1: input should be a valid string"),
        (["en", "pt-br", "pt-BR"], "languages: 'pt-BR' is a duplicate; remove it"),
        (["en", "es", {"tag": "ES", "name": "Spanish"}], "languages: 'es' is a duplicate; remove it"),
        (["zh", {"tag": "zh-Hant", "name": "Chinese"}], "languages: zh and zh-Hant have the same name, Chinese"),
        ([], "languages: "),
    ],
)
def test_a_wrong_language_is_refused_with_its_key(tmp_path: Path, languages: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, languages)
    assert said in str(caught.value)


def test_a_language_has_one_name(tmp_path: Path) -> None:
    named = [{"tag": "ha", "name": name} for name in ("Hausa", "Hausa of Kano")]
    with pytest.raises(
        UserError, match=r"evaluate.languages: ha \(Hausa of Kano\) has another name in languages, Hausa"
    ):
        load(tmp_path, ["en", named[0]], evaluate={"languages": [named[1]]})
