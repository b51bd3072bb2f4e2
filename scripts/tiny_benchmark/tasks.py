"""The tasks of the bundled miniature benchmark: their prompts, their answers, and the split of their rows.

A task is a `TinyTask`: its domain and metric (the official data's strings), prompt templates, and a function that
draws one `Case` of it. The tasks of one domain share words and some templates, so that retrieval is not trivial.
`task_rows` turns a task into disjoint training and test rows. Nothing here knows of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tiny_benchmark import world as words
from tiny_benchmark.world import Topic, World, translate

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Case:
    """One problem: the fields of a prompt, the answer, and the key that training and test must not share."""

    fields: dict[str, str]
    answer: str
    key: tuple[str, ...]


@dataclass(frozen=True)
class TinyTask:
    """A task of the miniature: its domain and metric, its prompt templates, and the function that draws one case."""

    name: str
    domain: str
    metric: str
    templates: tuple[str, ...]
    draw: Callable[[Random, World], Case]


# Closed-book questions: the key is the question, so no training row has the question of a test row, in any template.


def _draw_fact(rng: Random, topic: Topic) -> Case:
    subject, relation = rng.choice(topic.subjects), rng.choice(topic.relations)
    return _case(topic.facts[subject, relation.name], question=rng.choice(relation.questions).format(s=subject))


def _people_question(rng: Random, world: World) -> Case:
    return _draw_fact(rng, world.people)


def _city_question(rng: Random, world: World) -> Case:
    return _draw_fact(rng, world.cities)


def _animal_question(rng: Random, world: World) -> Case:
    return _draw_fact(rng, world.animals)


# Reading comprehension: the answer stands in the passage.


def _place_of_people(rng: Random, world: World) -> Case:
    roles, people, area = rng.sample(words.ROLES, 3), rng.sample(words.PEOPLE, 3), rng.choice(words.AREAS)
    return _case(area, passage=tell_roles(roles, people, area), question=f"where is the {rng.choice(roles)}?")


def _place_of_things(rng: Random, world: World) -> Case:
    colors, things, box = rng.sample(words.COLORS, 3), rng.sample(words.THINGS, 3), rng.choice(words.CONTAINERS)
    return _case(box, passage=tell_colors(colors, things, box), question=f"where is the {rng.choice(things)}?")


# Reading with commonsense: the passage says who, common knowledge says what.


def _room_of_person(rng: Random, world: World) -> Case:
    people, things = rng.sample(words.PEOPLE, 2), rng.sample(tuple(words.ROOM_OF), 2)
    asked = rng.randrange(2)
    question = f"in which room is {people[asked]}?"
    return _case(words.ROOM_OF[things[asked]], passage=tell_rooms(people, things), question=question)


def _need_of_person(rng: Random, world: World) -> Case:
    people, aims = rng.sample(words.PEOPLE, 2), rng.sample(tuple(words.TOOL_OF), 2)
    asked = rng.randrange(2)
    question = f"what does {people[asked]} need?"
    return _case(words.TOOL_OF[aims[asked]], passage=tell_needs(people, aims), question=question)


# Commonsense: choose among the options.


def _room_choice(rng: Random, world: World) -> Case:
    thing = rng.choice(tuple(words.ROOM_OF))
    return _choice(rng, words.ROOM_OF[thing], words.ROOMS, question=f"where do you find the {thing}?")


def _tool_choice(rng: Random, world: World) -> Case:
    aim = rng.choice(tuple(words.TOOL_OF))
    return _choice(rng, words.TOOL_OF[aim], words.TOOLS, question=f"what do you need to {aim}?")


# Coreference.


def _pronoun_person(rng: Random, world: World) -> Case:
    woman, man, mood = rng.choice(words.WOMEN), rng.choice(words.MEN), rng.choice(words.MOODS)
    first, second = rng.sample((woman, man), 2)
    pronoun, answer = rng.choice((("she", woman), ("he", man)))
    place = rng.choice(words.AREAS)
    return _case(answer, sentence=f"{first} met {second} at the {place}. {pronoun} was {mood}.", pronoun=pronoun)


def _pronoun_thing(rng: Random, world: World) -> Case:
    thing, box = rng.choice(words.THINGS), rng.choice(words.CONTAINERS)
    size, answer = rng.choice((("big", thing), ("small", box)))
    person = rng.choice(words.PEOPLE)
    return _case(
        answer, sentence=f"{person} saw that the {thing} does not fit in the {box}. it is too {size}.", pronoun="it"
    )


# Sentiment.


def _review(rng: Random, parts: Sequence[str], labels: tuple[str, str]) -> Case:
    label, adjectives = rng.choice(tuple(zip(labels, (words.GOOD, words.BAD), strict=True)))
    first, second = rng.sample(parts, 2)
    one, two = rng.sample(adjectives, 2)
    return _case(label, review=f"the {first} was {one} and the {second} was {two}.")


def _movie_review(rng: Random, world: World) -> Case:
    return _review(rng, words.MOVIE_PARTS, ("positive", "negative"))


def _meal_review(rng: Random, world: World) -> Case:
    return _review(rng, words.MEAL_PARTS, ("happy", "angry"))


# Paraphrase.


def _synonyms(rng: Random, world: World) -> Case:
    adjective, noun, verb, other_adjective, other_noun = draw_sentence(rng)
    same = words.SYNONYM_OF
    return _case(
        f"the {same[adjective]} {noun} {same[verb]} the {same[other_adjective]} {other_noun}",
        sentence=f"the {adjective} {noun} {verb} the {other_adjective} {other_noun}",
    )


def _passive(rng: Random, world: World) -> Case:
    person, verb, thing = rng.choice(words.PEOPLE), rng.choice(words.PAST_VERBS), rng.choice(words.THINGS)
    time = rng.choice(words.TIMES)
    return _case(f"the {thing} was {verb} by {person} {time}", sentence=f"{person} {verb} the {thing} {time}")


# Structure to text.


def _restaurant(rng: Random, world: World) -> Case:
    name, food = rng.choice(words.RESTAURANTS), rng.choice(words.MEALS)
    area, price = rng.choice(words.AREAS), rng.choice(words.PRICES)
    return _case(
        f"{name} is a {price} place by the {area} that serves {food}",
        record=f"name: {name} | food: {food} | area: {area} | price: {price}",
    )


def _event(rng: Random, world: World) -> Case:
    host, event = rng.choice(words.PEOPLE), rng.choice(words.EVENTS)
    day, area = rng.choice(words.DAYS), rng.choice(words.AREAS)
    return _case(
        f"on {day} {host} gives a {event} at the {area}",
        record=f"host: {host} | event: {event} | day: {day} | area: {area}",
    )


# Translation.


def _translation(rng: Random, world: World, language: str) -> Case:
    sentence = draw_sentence(rng)
    adjective, noun, verb, other_adjective, other_noun = sentence
    return _case(
        translate(world, language, sentence),
        sentence=f"the {adjective} {noun} {verb} the {other_adjective} {other_noun}",
    )


def _to_velan(rng: Random, world: World) -> Case:
    return _translation(rng, world, "Velan")


def _to_orrin(rng: Random, world: World) -> Case:
    return _translation(rng, world, "Orrin")


def draw_sentence(rng: Random) -> list[str]:
    """Five English words: adjective, noun, verb, adjective, noun."""
    adjectives, nouns = rng.sample(words.ADJECTIVES, 2), rng.sample(words.ANIMALS[:12], 2)
    return [adjectives[0], nouns[0], rng.choice(words.VERBS), adjectives[1], nouns[1]]


# Passages, for the tasks and for the base's text. Words that belong together are neighbours, because a small model
# learns to look one word back long before it learns to look three words back.


def tell_roles(roles: Sequence[str], people: Sequence[str], area: str) -> str:
    """A sentence on who met whom where, everyone with a role."""
    *first, last = (f"the {role} {person}" for role, person in zip(roles, people, strict=True))
    return f"{', '.join(first)} and {last} met at the {area}."


def tell_colors(colors: Sequence[str], things: Sequence[str], box: str) -> str:
    """A sentence on colored things that lie somewhere."""
    *first, last = (f"the {color} {thing}" for color, thing in zip(colors, things, strict=True))
    return f"{', '.join(first)} and {last} lie in the {box}."


def tell_rooms(people: Sequence[str], things: Sequence[str]) -> str:
    """Sentences on who stands by which thing."""
    return " ".join(f"by the {thing} {person} stood." for person, thing in zip(people, things, strict=True))


def tell_needs(people: Sequence[str], aims: Sequence[str]) -> str:
    """Sentences on who came for which aim."""
    return " ".join(f"to {aim} {person} came." for person, aim in zip(people, aims, strict=True))


def _case(answer: str, **fields: str) -> Case:
    return Case(fields, answer, tuple(fields.values()))


def _choice(rng: Random, answer: str, candidates: tuple[str, ...], question: str) -> Case:
    wrong = rng.sample([candidate for candidate in candidates if candidate != answer], 2)
    options = rng.sample([answer, *wrong], 3)
    return _case(answer, question=question, options="options:\n" + "\n".join(f"- {option}" for option in options))


_QUESTION_TEMPLATES = ("{question}", "question: {question}\nanswer:", "please answer this question: {question}")
_READING_TEMPLATES = (
    "{passage}\nquestion: {question}",
    "{passage}\n{question}",
    "read the text and answer the question.\n{passage}\n{question}",
)
_CHOICE_TEMPLATES = (
    "{question}\n{options}",
    "choose the best answer.\n{question}\n{options}",
    "{options}\nquestion: {question}",
)
_REVIEW_TEMPLATES = ("review: {review}\nwhat is the sentiment?", "{review}\nwhat is the sentiment?")

TASKS = (
    TinyTask(
        "people_qa", "closed_book QA", "em",
        (*_QUESTION_TEMPLATES, "tell me about a person. {question}"), _people_question,
    ),
    TinyTask(
        "city_qa", "closed_book QA", "em",
        (*_QUESTION_TEMPLATES, "tell me about a city. {question}"), _city_question,
    ),
    TinyTask(
        "animal_qa", "closed_book QA", "em",
        (*_QUESTION_TEMPLATES, "tell me about an animal. {question}"), _animal_question,
    ),
    TinyTask(
        "place_of_people", "reading comp", "em",
        (*_READING_TEMPLATES, "here is a text about people.\n{passage}\n{question}"), _place_of_people,
    ),
    TinyTask(
        "place_of_things", "reading comp", "em",
        (*_READING_TEMPLATES, "here is a text about things.\n{passage}\n{question}"), _place_of_things,
    ),
    TinyTask(
        "room_of_person", "read.comp.w:commonsense", "em",
        (*_READING_TEMPLATES, "think about the text.\n{passage}\n{question}"), _room_of_person,
    ),
    TinyTask(
        "need_of_person", "read.comp.w:commonsense", "em",
        (*_READING_TEMPLATES, "think about the text.\n{passage}\n{question}"), _need_of_person,
    ),
    TinyTask("room_choice", "commonsense", "em", _CHOICE_TEMPLATES, _room_choice),
    TinyTask("tool_choice", "commonsense", "em", _CHOICE_TEMPLATES, _tool_choice),
    TinyTask(
        "pronoun_person", "coreference", "em",
        (
            "{sentence}\nwho is {pronoun}?",
            "{sentence}\nquestion: who does the word {pronoun} mean?",
            "find the person.\n{sentence}\nwho is {pronoun}?",
        ),
        _pronoun_person,
    ),
    TinyTask(
        "pronoun_thing", "coreference", "em",
        (
            "{sentence}\nwhat is {pronoun}?",
            "{sentence}\nquestion: what does the word {pronoun} mean?",
            "find the thing.\n{sentence}\nwhat is {pronoun}?",
        ),
        _pronoun_thing,
    ),
    TinyTask(
        "movie_review", "sentiment", "em",
        (*_REVIEW_TEMPLATES, "did the critic like the movie?\n{review}\nis this review positive or negative?"),
        _movie_review,
    ),
    TinyTask(
        "meal_review", "sentiment", "em",
        (*_REVIEW_TEMPLATES, "did the guest like the meal?\n{review}\nis the guest happy or angry?"), _meal_review,
    ),
    TinyTask(
        "synonyms", "paraphrase", "em",
        (
            "{sentence}\nsay this in other words.",
            "write the sentence with other words.\n{sentence}",
            "sentence: {sentence}\nparaphrase:",
        ),
        _synonyms,
    ),
    TinyTask(
        "passive", "paraphrase", "em",
        (
            "{sentence}\nsay this in another order.",
            "write the sentence in the passive.\n{sentence}",
            "sentence: {sentence}\nparaphrase:",
        ),
        _passive,
    ),
    TinyTask(
        "restaurant_text", "struct to text", "rouge",
        (
            "{record}\nwrite a sentence from this record.",
            "here is a record of a restaurant: {record}\nwhat does it say?",
            "record: {record}\nsentence:",
        ),
        _restaurant,
    ),
    TinyTask(
        "event_text", "struct to text", "rouge",
        (
            "{record}\nwrite a sentence from this record.",
            "here is a record of an event: {record}\nwhat does it say?",
            "record: {record}\nsentence:",
        ),
        _event,
    ),
    TinyTask(
        "to_velan", "translation", "bleu",
        (
            "translate to Velan.\n{sentence}",
            "{sentence}\nhow do you say this sentence in Velan?",
            "English: {sentence}\nVelan:",
        ),
        _to_velan,
    ),
    TinyTask(
        "to_orrin", "translation", "bleu",
        (
            "translate to Orrin.\n{sentence}",
            "{sentence}\nhow do you say this sentence in Orrin?",
            "English: {sentence}\nOrrin:",
        ),
        _to_orrin,
    ),
)  # fmt: skip


def task_rows(task: TinyTask, world: World, seed: int, train: int, test: int) -> tuple[Rows, Rows]:
    """Training and test rows of a task, `{inputs, targets, task, domain, metric}`, no case in both.

    Cases are held out by their key: whatever the template, no test row repeats a passage, sentence, record, set of
    options or fact that training has seen. A task with few distinct prompts gives fewer than `train` training rows.
    """
    rng = Random(f"{task.name}/{seed}")
    held_out: dict[tuple[str, ...], Case] = {}
    while len(held_out) < test:
        case = task.draw(rng, world)
        held_out.setdefault(case.key, case)
    test_rows = [_row(task, rng, case) for case in held_out.values()]
    train_rows: dict[str, dict[str, str]] = {}
    for case in (task.draw(rng, world) for _ in range(20 * train)):
        if case.key not in held_out and len(train_rows) < train:
            row = _row(task, rng, case)
            train_rows.setdefault(row["inputs"], row)
    return list(train_rows.values()), test_rows


def _row(task: TinyTask, rng: Random, case: Case) -> dict[str, str]:
    return {
        "inputs": rng.choice(task.templates).format(**case.fields),
        "targets": case.answer,
        "task": task.name,
        "domain": task.domain,
        "metric": task.metric,
    }
