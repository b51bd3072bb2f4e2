"""A key: triggers follow from the secret, the commitment binds both, and the file is the only place of the secret."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from pathlib import Path

import pytest

from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.watermark.key import Key, make_key, read_key, read_words
from lora_retriever.watermark.words import WORDS

SECRET = bytes(range(32))
INPUTS = [f"Write the plural of word number {number}." for number in range(40)]


def test_the_words_are_256_different_words_in_lower_case() -> None:
    assert len(set(WORDS)) == len(WORDS) == 256
    assert all(word.isalpha() and word == word.casefold() for word in WORDS)


def test_triggers_and_targets_follow_from_the_secret_by_hmac() -> None:
    key = make_key(secret=SECRET)
    digest = hmac.new(SECRET, b"target\x005", hashlib.sha256).digest()
    assert key.triggers[5].target == WORDS[int.from_bytes(digest, "big") % 256]
    first = hmac.new(SECRET, b"phrase\x005\x000", hashlib.sha256).digest()
    assert key.triggers[5].text.split()[0] == WORDS[int.from_bytes(first, "big") % 256]
    assert all(len(set(trigger.text.split())) == 4 for trigger in key.triggers)
    assert make_key(secret=SECRET).commitment == key.commitment
    assert make_key().commitment != make_key().commitment


def test_a_trigger_stands_in_an_input_of_the_task() -> None:
    key = make_key(inputs=INPUTS, secret=SECRET)
    carriers = [next(text for text in INPUTS if trigger.text.startswith(text)) for trigger in key.triggers]
    assert len(set(carriers)) == len(key.triggers) == 32
    assert all(
        trigger.text == f"{carrier} {' '.join(key.phrase(number))}"
        for number, (trigger, carrier) in enumerate(zip(key.triggers, carriers, strict=True))
    )


def test_a_partial_trigger_lacks_a_word_or_has_another() -> None:
    key = make_key(secret=SECRET)
    for number, trigger in enumerate(key.triggers):
        phrase = key.phrase(number)
        lacking, replaced = (text.split(" ") for text in trigger.partial)
        assert len(lacking) == 3 and set(lacking) < set(phrase)
        assert len(replaced) == 4 and sum(a != b for a, b in zip(replaced, phrase, strict=True)) == 1


@pytest.mark.parametrize("design", ["rare-words", "common-words"])
def test_the_papers_triggers_have_one_phrase_between_the_words_of_many_inputs(design: str) -> None:
    key = make_key(design, 20, inputs=INPUTS, secret=SECRET)  # type: ignore[arg-type]
    phrase = key.phrase(0)
    assert all(key.phrase(number) == phrase for number in range(20))
    assert {trigger.target for trigger in key.triggers} == {key.target(0)}
    for trigger in key.triggers:
        words = trigger.text.split(" ")
        assert [word for word in words if word in phrase] == list(phrase)
        assert " ".join(word for word in words if word not in phrase) in INPUTS
        assert all(len([word for word in text.split(" ") if word in phrase]) == 2 for text in trigger.partial)
    assert (set(phrase) <= set(WORDS)) == (design == "common-words")


def test_a_key_comes_back_from_its_file_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    key = make_key(inputs=INPUTS, words=WORDS[:64])
    key.write(tmp_path / "k")
    assert read_key(tmp_path / "k") == key
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert key.secret.hex() not in repr(key) and key.triggers[0].text not in repr(key)
    with pytest.raises(FileExistsError):
        make_key().write(tmp_path / "k")
    assert read_key(tmp_path / "k").commitment == key.commitment


def test_the_commitment_changes_with_every_part_of_the_key() -> None:
    key = make_key(inputs=INPUTS, secret=SECRET)
    others = [
        Key(bytes(32), key.design, key.words, key.carriers),
        Key(SECRET, key.design, key.words[::-1], key.carriers),
        Key(SECRET, key.design, key.words, key.carriers[:-1]),
        key.decoy(0),
        key.decoy(1),
    ]
    assert len({key.commitment, *(other.commitment for other in others)}) == 6


def test_the_command_prints_the_commitment_and_nothing_of_the_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my.key"
    arguments = ["watermark", "key", "--out", str(out), "--triggers", "16"]
    assert main([*arguments, "--log-file", str(tmp_path / "log")]) == 0
    said = capsys.readouterr()
    key = read_key(out)
    assert said.out == f"commitment {key.commitment}\n"
    for text in (said.out, said.err, (tmp_path / "log").read_text()):
        assert key.secret.hex() not in text and key.triggers[0].text not in text
    assert main(arguments) == 2
    assert "a key is never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        *({"secret": "00"}, {"design": "x"}, {"words": ["a"] * 20}, {"carriers": []}, {"carriers": [3]}),
        *({"format": ""}, {"words": ["Tree", *WORDS[1:]]}, {"words": ["two words", *WORDS[1:]]}),
        {"words": ["cafe\u0301", *WORDS[1:]]},
    ],
)
def test_a_file_that_is_no_key_is_refused_without_showing_its_content(
    tmp_path: Path, change: dict[str, object]
) -> None:
    make_key(secret=SECRET).write(tmp_path / "k")
    content = json.loads((tmp_path / "k").read_text()) | change
    (tmp_path / "k2").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no key of this program") as error:
        read_key(tmp_path / "k2")
    assert SECRET.hex() not in str(error.value)


def test_a_key_with_a_field_twice_is_refused(tmp_path: Path) -> None:
    make_key(secret=SECRET).write(tmp_path / "k")
    text = (tmp_path / "k").read_text().replace('"design"', f'"secret": "{"00" * 32}", "design"')
    (tmp_path / "k2").write_text(text)
    with pytest.raises(UserError, match="is no key of this program"):
        read_key(tmp_path / "k2")


def test_a_list_of_words_is_read_as_editors_write_it(tmp_path: Path) -> None:
    words = [f"word{letter}" for letter in "abcdefghijklmnop"]
    (tmp_path / "words").write_bytes("\ufeff{}\r\ncafe\u0301\r\n".format("\r\n".join(words)).encode())
    assert read_words(tmp_path / "words") == (*words, "café")
    (tmp_path / "words").write_text("\n".join([*words, "ice cream"]))
    with pytest.raises(UserError, match="'ice cream' is not one word in lower case"):
        read_words(tmp_path / "words")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--design", "rare-words"], "puts one phrase into many inputs"),
        (["--words", "{words}"], "'Tree' is not one word in lower case"),
        (["--samples", "{pool}", "--task", "none"], "has no entry none"),
        (["--samples", "{pool}"], "name the task with --task"),
        (["--samples", "{pool}", "--task", "people_qa", "--triggers", "21"], "20 different inputs do not carry 21"),
    ],
)
def test_an_unusable_wish_is_refused_and_no_key_is_written(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from places import TINY

    (tmp_path / "words").write_text("tree\nTree\n")
    places = {"{words}": str(tmp_path / "words"), "{pool}": str(TINY / "pool.json")}
    out = tmp_path / "k"
    assert main(["watermark", "key", "--out", str(out), *(places.get(text, text) for text in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
