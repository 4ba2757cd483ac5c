"""The small verifiers, `instruction` and `json_schema`: what the lines of golden files cannot say."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.errors import UserError
from onebase.verifiers import instruction, json_schema, language, length, repetition
from onebase.verifiers.format_think import verify as format_think
from onebase.verifiers.instruction_checks import CHECKS, split_sentences
from onebase.verifiers.language_words import FUNCTION_WORDS

SECONDS = 2.0  # of CPU, for hostile text at the limits; measured well under half a second


def cpu(function, *arguments, **options):
    start = time.process_time()
    verdict = function(*arguments, **options)
    return verdict, time.process_time() - start


# -- format_think and length


def test_spelled_out_tags_differ_from_ids_of_a_real_tokenizer():
    from onebase import tokenizer as tokenizers

    tokenizer = tokenizers.train(["<think>two and two</think>four, he said"] * 30, 400)
    typed = tokenizer.encode("<think>two</think>four")
    meant = [tokenizer.think_id, *tokenizer.encode("two"), tokenizer.end_think_id, *tokenizer.encode("four")]
    tags = (tokenizer.think_id, tokenizer.end_think_id)
    assert tokenizer.text(typed) == tokenizer.text(meant)
    assert format_think(tokenizer.text(meant), tag_counts=[meant.count(t) for t in tags]).reward == 1.0
    verdict = format_think(tokenizer.text(typed), tag_counts=[typed.count(t) for t in tags])
    assert verdict.reward == 0.0 and "spelled out" in verdict.reason


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=16), st.sampled_from(["range", "sigmoid"]))
def test_relative_cost_prefers_the_shorter(lengths, cost):
    rewards = {n: length.verify("x", n_tokens=n, group_tokens=lengths, cost=cost).reward for n in lengths}
    ordered = [rewards[n] for n in sorted(rewards)]
    assert all(0.0 <= r <= 1.0 for r in ordered)
    assert ordered == sorted(ordered, reverse=True)
    if cost == "range" and min(lengths) < max(lengths):
        assert rewards[min(lengths)] == 1.0 and rewards[max(lengths)] == 0.0


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=16).filter(lambda ns: len(set(ns)) > 1))
def test_sigmoid_cost_is_the_papers_formula(lengths):
    for n in lengths:
        z = (n - statistics.fmean(lengths)) / statistics.pstdev(lengths)
        wanted = 1 - 1 / (1 + math.exp(-z))
        got = length.verify("x", n_tokens=n, group_tokens=lengths, cost="sigmoid").reward
        assert got == pytest.approx(wanted, abs=1e-12)


# -- language

# The same two sentences in the languages that share a script with others.
SENTENCES = {
    "en": "We have to find the number of apples that each child gets. There are twelve apples here.",
    "fr": "Nous devons trouver le nombre de pommes que chaque enfant reçoit. Il y a douze pommes ici.",
    "de": "Wir müssen die Anzahl der Äpfel finden, die jedes Kind bekommt. Es sind zwölf Äpfel da.",
    "es": "Tenemos que encontrar el número de manzanas que recibe cada niño. Hay doce manzanas aquí.",
    "it": "Dobbiamo trovare il numero di mele che riceve ogni bambino. Ci sono dodici mele qui.",
    "pt": "Temos de encontrar o número de maçãs que cada criança recebe. Há doze maçãs aqui.",
    "nl": "We moeten het aantal appels vinden dat elk kind krijgt. Er zijn hier twaalf appels.",
    "pl": "Musimy znaleźć liczbę jabłek, które otrzymuje każde dziecko. Jest tu dwanaście jabłek.",
    "sv": "Vi måste hitta antalet äpplen som varje barn får. Det finns tolv äpplen här.",
    "da": "Vi skal finde antallet af æbler, som hvert barn får. Der er tolv æbler her.",
    "fi": "Meidän täytyy löytää omenoiden määrä, jonka jokainen lapsi saa. Täällä on kaksitoista omenaa.",
    "cs": "Musíme najít počet jablek, které dostane každé dítě. Je tu dvanáct jablek.",
    "ro": "Trebuie să găsim numărul de mere pe care îl primește fiecare copil. Sunt aici douăsprezece mere.",
    "hu": "Meg kell találnunk, hogy hány almát kap minden gyerek. Itt van tizenkét alma.",
    "tr": "Her çocuğun kaç elma aldığını bulmamız gerekiyor. Burada on iki elma var.",
    "vi": "Chúng ta phải tìm số táo mà mỗi đứa trẻ nhận được. Ở đây có mười hai quả táo.",
    "id": "Kita harus menemukan jumlah apel yang diterima setiap anak. Di sini ada dua belas apel.",
    "sw": "Lazima tupate idadi ya matofaa ambayo kila mtoto anapata. Hapa kuna matofaa kumi na mbili.",
    "ru": "Нам нужно найти число яблок, которое получает каждый ребёнок. Здесь двенадцать яблок.",
    "uk": "Нам потрібно знайти кількість яблук, яку отримує кожна дитина. Тут є дванадцять яблук.",
    "bg": "Трябва да намерим броя на ябълките, които получава всяко дете. Тук има дванадесет ябълки.",
    "sr": "Треба да нађемо број јабука које добија свако дете. Овде има дванаест јабука.",
    "ar": "يجب أن نجد عدد التفاحات التي يحصل عليها كل طفل. هناك اثنتا عشرة تفاحة هنا.",
    "fa": "باید تعداد سیب‌هایی را که هر کودک می‌گیرد پیدا کنیم. دوازده سیب در این جا است.",
    "ur": "ہمیں سیبوں کی تعداد معلوم کرنی ہے جو ہر بچے کو ملتی ہے۔ یہاں بارہ سیب ہیں۔",
    "hi": "हमें सेबों की संख्या ज्ञात करनी है जो हर बच्चे को मिलती है। यहाँ बारह सेब हैं।",
    "mr": "प्रत्येक मुलाला मिळणाऱ्या सफरचंदांची संख्या शोधायची आहे. येथे बारा सफरचंदे आहेत.",
    "ne": "हरेक बच्चाले पाउने स्याउको संख्या पत्ता लगाउनु पर्छ। यहाँ बाह्र स्याउ छन्।",
}


def test_languages_of_one_script_are_told_apart():
    assert set(SENTENCES) | {"nb"} == set(FUNCTION_WORDS)
    for code, text in SENTENCES.items():
        assert language.verify(text, target=code).reward == 1.0, code
        for other in SENTENCES:
            if other != code:
                assert language.verify(text, target=other).reward < 0.5, (code, other)


def test_a_foreign_sentence_counts_by_its_words():
    text = SENTENCES["en"] + " " + SENTENCES["de"]
    share = language.verify(text).reward
    assert share == pytest.approx(17 / 34, abs=0.05)


@given(st.text(max_size=400), st.sampled_from(sorted(language.LANGUAGES)))
@settings(deadline=None)
def test_language_share_is_a_share(text, target):
    found = language.count(text, target)
    assert 0 <= found.good <= found.words
    assert 0.0 <= language.verify(text, target=target).reward <= 1.0


@pytest.mark.parametrize(
    "piece",
    ["\\[", "\\(", "$", "$$a", "`a", "```", "<", "a'", "a\u0301", "\u0301", "word ", "二", "https://"],
)
def test_hostile_text_is_read_in_linear_time(piece):
    text = (piece * 200_000)[:200_000]
    for function in (language.verify, repetition.verify):
        verdict, seconds = cpu(function, text)
        assert verdict.reward is not None and seconds < SECONDS, (piece, seconds)


# -- instruction

ARGUMENTS = {
    "relation": "at least", "n": 3, "word": "a", "words": ["a", "b"], "phrase": "a", "form": "upper",
    "options": ["a", "b"], "prompt": "a", "paragraph": 1, "language": "en",
}  # fmt: skip
ALL = [{"check": name} | {key: ARGUMENTS[key] for key in instruction._arguments(name)[1]} for name in CHECKS]


@given(st.text(max_size=300), st.booleans())
@settings(deadline=None)
def test_every_check_judges_any_text(text, loose):
    verdict = instruction.verify(text, checks=ALL, partial=True, loose=loose)
    assert verdict.error is None and 0.0 <= verdict.reward <= 1.0
    json.dumps(verdict.reason)


@given(st.lists(st.sampled_from(["alpha", "beta", "gamma"]), max_size=30), st.integers(0, 30))
def test_counts_are_counts(words, n):
    text = " ".join(words) + " end"
    row = {
        "checks": [{"check": "words", "relation": r, "n": n} for r in ("at least", "less than", "exactly")]
    }
    followed = instruction.verify(text, **row).details["followed"]
    count = len(words) + 1
    assert followed == [count >= n, count < n, count == n]
    keyword = {"check": "keyword", "word": "beta", "relation": "exactly", "n": words.count("beta")}
    assert instruction.verify(text, checks=[keyword]).reward == 1.0


@given(st.lists(st.text("abc ,", min_size=1, max_size=9), min_size=1, max_size=5), st.sampled_from(".!?"))
def test_sentences_that_were_put_together_are_found_again(parts, mark):
    made = [f"Sentence {part.strip()}x{mark}" for part in parts]
    assert split_sentences(" ".join(made)) == [" ".join(m.split(" ")) for m in made]


def test_loose_accepts_what_strict_accepts():
    text = "Sure!\nno commas here\nBye, then"
    row = {"checks": [{"check": "no_commas"}, {"check": "starts_with", "phrase": "no"}]}
    assert instruction.verify(text, **row).details["followed"] == [False, False]
    assert instruction.verify(text, loose=True, **row).details["followed"] == [True, True]


@pytest.mark.parametrize("piece", [".", "*", "[", "<<", "a.", "\n", "* ", "p.s.!", "```", "(", "{", "'", "-"])
def test_hostile_answers_are_checked_in_linear_time(piece):
    verdict, seconds = cpu(instruction.verify, (piece * 400_000)[:399_990] + "z", checks=ALL)
    assert verdict.reward == 0.0 and seconds < 2 * SECONDS, (piece, seconds)
    longer = instruction.verify("word " * 100_000, checks=[{"check": "no_commas"}])
    assert longer.reward == 0.0 and "characters" in longer.reason


def test_unknown_checks_name_the_nearest():
    verdict = instruction.verify("x", checks=[{"check": "sentencs", "relation": "exactly", "n": 1}])
    assert verdict.error.startswith("gold:") and "did you mean: sentences" in verdict.error
    problem = instruction.gold_problem("", checks=[{"check": "words", "relation": "exactly", "m": 1}])
    assert "no argument 'm'" in problem
    assert instruction.gold_problem("", instruction_id_list=["punctuation:no_comma"], kwargs=[{}]) is None


def test_rows_as_tables_carry_them():
    """Columns of all checks in every row, None where a check has no such argument; numbers as floats."""
    check = {"check": "words", "relation": "exactly", "n": 3.0, "word": None, "phrase": None}
    assert instruction.verify("one two three", checks=(check,)).reward == 1.0
    theirs = {"num_words": 3.0, "relation": "less than", "keywords": None, "letter": None}
    ids = ["length_constraints:number_words"]
    assert instruction.verify("one two", instruction_id_list=ids, kwargs=[theirs]).reward == 1.0


# -- json_schema

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
def test_strict_reading_agrees_with_json_on_what_json_writes(value):
    assert json_schema.read_strictly(json.dumps(value)) == value
    assert json_schema.read_strictly(json.dumps(value, indent=1, ensure_ascii=False)) == value
    block = f"so:\n```json\n{json.dumps(value, indent=1)}\n```\nthat is it"
    assert json_schema.read_strictly(json_schema.fenced(block)) == value


@given(st.text(max_size=120) | st.text('[]{}",:0123456789.eE-+ \\ntrufals`jso\n', max_size=80))
def test_any_answer_gets_a_verdict(text):
    verdict = json_schema.verify(text, schema={})
    assert verdict.error is None
    if verdict.reward == 1.0:
        json.loads(json_schema.fenced(text))  # what is accepted strictly, json reads as well
    verdict.reason.encode("utf-8")


def test_nothing_is_fetched(monkeypatch):
    import urllib.request

    def fetch(*_, **__):
        raise AssertionError("fetched")

    monkeypatch.setattr(urllib.request, "urlopen", fetch)
    for ref in ("http://127.0.0.1:1/a", "https://example.org/b#/c", "file:///etc/hostname"):
        verdict = json_schema.verify("1", schema={"allOf": [{"$ref": ref}]})
        assert verdict.reward is None and "nothing is fetched" in verdict.error


def test_a_missing_package_is_told(monkeypatch):
    json_schema._validator.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(UserError, match=r"pip install 'onebase\[verifiers\]'"):
        json_schema.verify("1", schema={"type": "integer"})
    json_schema._validator.cache_clear()


def test_large_answers_are_refused_before_they_are_read():
    for text in ('"' + "a" * 250_000 + '"', "[" * 1_000_000, "```json\n" * 200_000, '"\\' * 99_999):
        verdict, seconds = cpu(json_schema.verify, text, schema={})
        assert verdict.reward == 0.0 and seconds < SECONDS


def test_a_pattern_that_never_ends_is_ended_by_the_pool():
    from onebase.verifiers.pool import VerifierPool

    rows = [
        {"completion": json.dumps(text), "answer": "", "schema": {"pattern": "^(a+)+$"}}
        for text in ("aaa", "a" * 60 + "!", "b")
    ]
    with VerifierPool(workers=1, wall_seconds=3) as pool:
        verdicts = pool.run("json_schema", rows)
    assert [v.reward for v in verdicts] == [1.0, None, 0.0] and "timeout" in verdicts[1].error
