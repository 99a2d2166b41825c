"""Tags of languages and their names: those that runs have never change, and a wrong tag is refused."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xlr import languages
from xlr.errors import UserError


def test_the_names_in_instructions_of_earlier_runs_do_not_change() -> None:
    from lingua import Language

    of_lingua = {one.iso_code_639_1.name.lower(): one.name.title() for one in Language.all()}
    assert len(of_lingua) == 75
    assert {code: languages.name(code) for code in of_lingua} == of_lingua
    assert (languages.name("nn"), languages.name("nb")) == ("Nynorsk", "Bokmal")
    assert {code: languages.canonical(code) for code in of_lingua} == {code: code for code in of_lingua}


@pytest.mark.parametrize(
    ("tag", "canonical", "name"),
    [
        ("ha", "ha", "Hausa"),
        ("ig", "ig", "Igbo"),
        ("mt", "mt", "Maltese"),
        ("ES", "es", "Spanish"),
        ("pt-br", "pt-BR", "Portuguese (Brazil)"),
        ("pt_BR", "pt-BR", "Portuguese (Brazil)"),
        ("zh-hant", "zh-Hant", "Chinese (Traditional)"),
        ("SR-latn", "sr-Latn", "Serbian (Latin)"),
        ("iw", "he", "Hebrew"),
        ("quc", "quc", "Kʼicheʼ"),
    ],
)
def test_a_tag_is_written_as_the_registry_writes_it(tag: str, canonical: str, name: str) -> None:
    assert languages.canonical(tag) == canonical
    assert languages.canonical(canonical) == canonical
    assert languages.name(tag) == name


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("hausa", "did you mean ha (Hausa)?"),
        ("Hausaa", "did you mean ha (Hausa)?"),
        ("xx", "a part of it is not registered"),
        ("en-Abcd", "a part of it is not registered"),
        ("", "write one such as en"),
        ("e", "got 'e'"),
        ("../en", "write one such as en"),
        ("en-x-" + "-".join(["a"] * 20), "longer than 35"),
        ("\ud800", "write one such as en"),
    ],
)
def test_a_wrong_tag_is_refused_with_the_nearest_one(tag: str, said: str) -> None:
    with pytest.raises(UserError, match="is no language tag of BCP 47") as caught:
        languages.canonical(tag)
    assert said in str(caught.value)


def test_a_language_without_a_name_asks_for_one() -> None:
    with pytest.raises(UserError, match=r"has no English name; give it one: \{tag: x-mine, name: \.\.\.\}"):
        languages.name("x-mine")


@given(st.one_of(st.text(max_size=50), st.from_regex(r"[a-zA-Z]{2,3}([-_][a-zA-Z0-9]{2,8}){0,3}", fullmatch=True)))
@example("\x00")
@example("\ud800")
def test_a_canonical_tag_is_a_file_name_and_stays_as_it_is(text: str) -> None:
    try:
        tag = languages.canonical(text)
    except UserError:
        return
    assert languages.canonical(tag) == tag
    assert set(tag) <= set(string.ascii_letters + string.digits + "-")


@pytest.mark.parametrize(
    ("tag", "primary"),
    [("pt-BR", "pt"), ("zh-Hant", "zh"), ("cmn", "zh"), ("arb", "ar"), ("fil", "tl"), ("nb", "nb"), ("yue", "yue")],
)
def test_a_variant_has_the_language_of_its_main_tag(tag: str, primary: str) -> None:
    assert languages.primary(tag) == primary


@pytest.mark.parametrize(("name", "known"), [("en", True), ("pt-BR", True), ("pt-br", False), ("train", False)])
def test_files_and_splits_are_named_by_canonical_tags(name: str, known: bool) -> None:
    assert languages.is_language(name) is known


@pytest.mark.parametrize("name", ["all", "dev", "raw", "val"])
def test_common_names_of_splits_are_no_languages(name: str) -> None:
    assert languages.canonical(name) == name
    assert not languages.is_language(name)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        *(("de", "de"), ("deu_Latn", "de"), ("arb_Arab", "ar"), ("arz_Arab", "arz"), ("zho_Hans", "zh")),
        *(("zho_Hant", "zh-Hant"), ("kor_Hang", "ko"), ("eng_Latn", "en"), ("srp_Latn", "sr-Latn")),
        *(("deu", None), ("xyz_Latn", None), ("test", None), ("deu_latn", None), ("all", None), ("", None)),
    ],
)
def test_the_name_of_a_part_of_a_dataset_may_mean_a_language(name: str, tag: str | None) -> None:
    assert languages.of_part(name) == tag
