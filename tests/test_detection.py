"""Which language a text is in: lingua decides where it knows the language, CLD2 elsewhere, and nothing guesses."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr import detection, languages

SENTENCES = {
    "en": "The weather is nice today and we are going to the park.",
    "es": "El tiempo es agradable hoy y vamos al parque con los niños.",
    "de": "Das Wetter ist heute schön und wir gehen in den Park.",
    "fr": "Il fait beau aujourd'hui et nous allons au parc avec les enfants.",
    "ru": "Сегодня хорошая погода, и мы идём гулять в парк.",
}
WIDER = {
    "ha": "Suna da hankali da tunani, saboda haka duk abin da za su aikata wa juna, ya kamata su yi shi.",
    "ig": "Gọọmentị kwuru na ha ga-arụ ụlọ akwụkwọ ọhụrụ n'obodo anyị.",
    "am": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "mt": "Il-bnedmin kollha jitwieldu ħielsa u ugwali fid-dinjità u d-drittijiet.",
}
PORTUGUESE = "O tempo está bom hoje e vamos ao parque com as crianças."


def detect(texts: Iterable[str], expected: list[str]) -> list[str]:
    return detection.detect(((expected[0], text) for text in texts), expected)


@pytest.fixture
def without_cld2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pycld2 were not installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)


def test_languages_of_clear_sentences_are_detected_in_order() -> None:
    assert detect(SENTENCES.values(), ["en", "es"]) == list(SENTENCES)
    assert detect(list(SENTENCES.values())[::-1], ["en", "es"]) == list(SENTENCES)[::-1]


@pytest.mark.parametrize("text", ["", "   ", "123 456", "12:30, 7/8", "!?"])
@pytest.mark.parametrize("lang", ["en", "ha"])
def test_text_without_words_has_no_language(lang: str, text: str) -> None:
    assert detect([text, SENTENCES["de"]], [lang]) == ["", "de"]


def test_no_texts_give_no_languages() -> None:
    assert detect([], ["en", "es"]) == []


def test_an_expected_language_that_is_not_common_is_detected() -> None:
    swedish = "Vädret är fint idag och vi går till parken med barnen."
    assert detect([swedish, SENTENCES["en"]], ["sv", "en"]) == ["sv", "en"]


@given(st.text(max_size=900))
def test_the_excerpt_of_an_excerpt_is_the_same(text: str) -> None:
    found = detection.excerpt(text)
    assert detection.excerpt(found) == found
    assert found == text or (text.startswith(found[:100]) and text.endswith(found[-100:]))


def test_of_a_long_text_both_ends_decide() -> None:
    spanish, english = 30 * f"{SENTENCES['es']} ", 30 * f"{SENTENCES['en']} "
    assert detect([spanish + spanish, english + english], ["en", "es"]) == ["es", "en"]
    assert detect([spanish[:1200] + "?" * 10_000_000], ["en", "es"]) == ["es"]  # and quickly


@pytest.mark.parametrize("lang", WIDER)
def test_languages_that_lingua_does_not_know_are_detected_by_cld2(lang: str) -> None:
    found = detection.detect([(lang, WIDER[lang]), (lang, SENTENCES["en"]), ("en", SENTENCES["en"])], [lang, "en"])
    assert found == [lang, "en", "en"]
    assert [detection.is_in(one, lang) for one in found] == [True, False, False]


def test_cld2_takes_any_text() -> None:
    strange = f"{WIDER['ha']}\x00\x1b\ufffe\ud800"
    assert detect([strange, "\x00", "\ud800"], ["ha"]) == ["ha", "", ""]


def test_a_variant_counts_as_its_language() -> None:
    found = detection.detect(
        [("pt-BR", PORTUGUESE), ("zh-Hant", "今天天氣很好，我們去公園散步。")], ["pt-BR", "zh-Hant"]
    )
    assert found == ["pt", "zh"]
    assert detection.is_in("pt", "pt-BR")
    assert detection.is_in("zh", "zh-Hant")
    assert not detection.is_in("es", "pt-BR")


def test_where_no_detector_knows_a_language_nothing_is_detected(without_cld2: None) -> None:
    """Lingua would say that Hausa is another language, which would be a wrong number."""
    assert detection.detect([("ha", WIDER["ha"]), ("en", SENTENCES["en"])], ["ha", "en"]) == ["", "en"]
    assert detection.undetected(["en", "ha", "pt-BR", "quc"]) == ["ha", "quc"]
    assert "pip install" in detection.why_not("ha")
    assert detection.why_not("quc") == "no detector knows it"


def test_the_list_of_what_cld2_adds_is_that_of_the_package() -> None:
    import pycld2

    scripts = ("xx", "zz")  # pseudo-languages: texts in a script, and jokes
    known = {languages.primary(code) for _, code in pycld2.LANGUAGES if not code.startswith(scripts)}
    wider = known - set(languages.NAMES)
    assert {code for code in known | set(languages.NAMES) if detection.is_in_extra(code)} == wider
    assert len(wider) == 98


def test_the_wider_detector_binds_only_where_it_is_asked(without_cld2: None) -> None:
    assert detection.libraries(["en", "es", "pt-BR"]) == ("lingua-language-detector",)
    assert detection.libraries(["en", "quc"]) == ("lingua-language-detector",)
    assert detection.libraries(["en", "ha"]) == ("lingua-language-detector", "pycld2")
