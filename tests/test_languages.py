import pytest

from xlr import languages
from xlr.errors import UserError

SENTENCES = {
    "en": "The weather is nice today and we are going to the park.",
    "es": "El tiempo es agradable hoy y vamos al parque con los niños.",
    "de": "Das Wetter ist heute schön und wir gehen in den Park.",
    "fr": "Il fait beau aujourd'hui et nous allons au parc avec les enfants.",
    "ru": "Сегодня хорошая погода, и мы идём гулять в парк.",
}


@pytest.mark.parametrize(
    ("code", "name"),
    [("en", "English"), ("es", "Spanish"), ("de", "German"), ("fr", "French"), ("ru", "Russian"), ("zh", "Chinese")],
)
def test_name_is_the_english_name(code, name):
    assert languages.name(code) == name


@pytest.mark.parametrize("code", ["xx", "spanish", "ES", ""])
def test_unknown_codes_are_refused_and_named(code):
    with pytest.raises(UserError, match="not a known ISO 639-1 language code") as caught:
        languages.name(code)
    assert repr(code) in str(caught.value)
    assert "es" in str(caught.value)


def test_languages_of_clear_sentences_are_detected_in_order():
    assert languages.detect(SENTENCES.values(), ["en", "es"]) == list(SENTENCES)
    assert languages.detect(list(SENTENCES.values())[::-1], ["en", "es"]) == list(SENTENCES)[::-1]


@pytest.mark.parametrize("text", ["", "   ", "123 456", "12:30, 7/8", "!?"])
def test_text_without_words_has_no_language(text):
    assert languages.detect([text, SENTENCES["de"]], ["en", "es"]) == ["", "de"]


def test_no_texts_give_no_languages():
    assert languages.detect([], ["en", "es"]) == []


def test_an_expected_language_that_is_not_common_is_detected():
    swedish = "Vädret är fint idag och vi går till parken med barnen."
    assert languages.detect([swedish, SENTENCES["en"]], ["sv", "en"]) == ["sv", "en"]


def test_detecting_among_unknown_codes_is_refused():
    with pytest.raises(UserError, match="'xx'"):
        languages.detect(["hello"], ["xx"])


def test_of_a_long_text_both_ends_decide():
    spanish, english = 30 * f"{SENTENCES['es']} ", 30 * f"{SENTENCES['en']} "
    assert languages.detect([spanish + spanish, english + english], ["en", "es"]) == ["es", "en"]
    assert languages.detect([spanish[:1200] + "?" * 10_000_000], ["en", "es"]) == ["es"]  # and quickly
