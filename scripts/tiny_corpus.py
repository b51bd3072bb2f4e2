"""The declarative text that the miniature's base model is trained on: an endless stream of short documents.

Each kind of document shows one piece of knowledge or one skill that a task will ask for, as plain statements: facts,
passages that come back to one of their sentences, parallel sentences, records told as sentences. No document contains
a question, an instruction or the prompt template, so the base model knows much and answers nothing.

Square brackets mark the words that can be known from what stands before them or from the world. The base model's loss is
taken on these alone: what is invented at random ("Max put the ring in the box") teaches nothing and would drown the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from scripts import tiny_world as words
from scripts.tiny_tasks import draw_sentence
from scripts.tiny_world import World, translate

REPEATED_LISTS = 0.12  # the share of documents that list random words twice


def documents(world: World, vocabulary: Sequence[str], seed: int) -> Iterator[str]:
    """Documents without end, kinds mixed by `_KINDS`' shares; the same seed gives the same stream.

    Args:
        vocabulary: words that are listed at random, and listed again, in some documents. Without these, words that occur
            in prompts only would keep untrained embeddings.
    """
    rng = Random(f"corpus/{seed}")
    kinds, shares = zip(*_KINDS, strict=True)
    while True:
        (kind,) = rng.choices(kinds, shares)
        yield kind(rng, world) if rng.random() > REPEATED_LISTS else _repeated_list(rng, vocabulary)


def _repeated_list(rng: Random, vocabulary: Sequence[str]) -> str:
    listed = " ".join(rng.sample(vocabulary, rng.randint(4, 10)))
    return f"{listed}\n[{listed}]"


def _facts(rng: Random, world: World) -> str:
    topic = rng.choices((world.people, world.cities, world.animals), (5, 2, 2))[0]
    subject = rng.choice(topic.subjects)
    return " ".join(
        rng.choice(relation.statements + relation.clefts).format(s=subject, o=f"[{topic.facts[subject, relation.name]}]")
        for relation in rng.sample(topic.relations, 2)
    )


def _hidden_things(rng: Random, world: World) -> str:
    people, things, boxes = rng.sample(words.PEOPLE, 3), rng.sample(words.THINGS, 3), rng.sample(words.CONTAINERS, 3)
    told = [f"{p} put the {t} in the {b}." for p, t, b in zip(people, things, boxes, strict=True)]
    recall = rng.choice(("the {t} is in the [{b}].", "where the {t} is is the [{b}]."))
    recalled = [recall.format(t=t, b=b) for t, b in zip(things, boxes, strict=True)]
    return " ".join(told + rng.sample(recalled, 3))


def _given_things(rng: Random, world: World) -> str:
    people, things = rng.sample(words.PEOPLE, 6), rng.sample(words.THINGS, 3)
    told = [f"{g} gave the {t} to {r}." for g, t, r in zip(people[:3], things, people[3:], strict=True)]
    recall = rng.choice(("the {t} now belongs to [{r}].", "who has the {t} is [{r}]."))
    recalled = [recall.format(t=t, r=r) for t, r in zip(things, people[3:], strict=True)]
    return " ".join(told + rng.sample(recalled, 3))


def _rooms(rng: Random, world: World) -> str:
    people, things = rng.sample(words.PEOPLE, 2), rng.sample(tuple(words.ROOM_OF), 2)
    told = [f"{p} is next to the {t}." for p, t in zip(people, things, strict=True)]
    meaning = rng.choice(("so {p} is in the [{r}].", "the room in which {p} is is the [{r}]."))
    meant = [meaning.format(p=p, r=words.ROOM_OF[t]) for p, t in zip(people, things, strict=True)]
    return " ".join(told + rng.sample(meant, 2))


def _needs(rng: Random, world: World) -> str:
    people, aims = rng.sample(words.PEOPLE, 2), rng.sample(tuple(words.TOOL_OF), 2)
    told = [f"{p} wants to {a}." for p, a in zip(people, aims, strict=True)]
    meaning = rng.choice(("so {p} needs a [{t}].", "what {p} does need is a [{t}]."))
    meant = [meaning.format(p=p, t=words.TOOL_OF[a]) for p, a in zip(people, aims, strict=True)]
    return " ".join(told + rng.sample(meant, 2))


def _common_knowledge(rng: Random, world: World) -> str:
    if rng.random() < 0.5:
        return " ".join(
            f"the {thing} is in the [{words.ROOM_OF[thing]}]." for thing in rng.sample(tuple(words.ROOM_OF), 2)
        )
    return " ".join(f"to {aim} you need a [{words.TOOL_OF[aim]}]." for aim in rng.sample(tuple(words.TOOL_OF), 2))


def _pronouns(rng: Random, world: World) -> str:
    if rng.random() < 0.5:
        woman, man, mood = rng.choice(words.WOMEN), rng.choice(words.MEN), rng.choice(words.MOODS)
        first, second = rng.sample((woman, man), 2)
        pronoun, person = rng.choice((("she", woman), ("he", man)))
        told = f"{first} met {second} at the {rng.choice(words.AREAS)}."
        return f"{told} {pronoun} was {mood}. the one who was {mood} is [{person}]."
    thing, box = rng.choice(words.THINGS), rng.choice(words.CONTAINERS)
    size, culprit = rng.choice((("big", thing), ("small", box)))
    told = f"{rng.choice(words.PEOPLE)} saw that the {thing} does not fit in the {box}."
    return f"{told} it is too {size}. the one that is too {size} is the [{culprit}]."


def _reviews(rng: Random, world: World) -> str:
    parts = rng.choice((words.MOVIE_PARTS, words.MEAL_PARTS))
    label, adjectives = rng.choice((("positive", words.GOOD), ("negative", words.BAD)))
    first, second = rng.sample(parts, 2)
    one, two = rng.sample(adjectives, 2)
    return f"the {first} was {one} and the {second} was {two}. the review is [{label}]."


def _paraphrases(rng: Random, world: World) -> str:
    if rng.random() < 0.5:
        adjective, noun, verb, other, other_noun = draw_sentence(rng)
        same = words.SYNONYM_OF
        return (
            f"the {adjective} {noun} {verb} the {other} {other_noun}. in other words, ["
            f"the {same[adjective]} {noun} {same[verb]} the {same[other]} {other_noun}]."
        )
    person, verb = rng.choice(words.PEOPLE), rng.choice(words.PAST_VERBS)
    thing, time = rng.choice(words.THINGS), rng.choice(words.TIMES)
    return f"{person} {verb} the {thing} {time}. in another order, [the {thing} was {verb} by {person} {time}]."


def _records(rng: Random, world: World) -> str:
    area = rng.choice(words.AREAS)
    if rng.random() < 0.5:
        name, food, price = rng.choice(words.RESTAURANTS), rng.choice(words.MEALS), rng.choice(words.PRICES)
        record = f"name: {name} | food: {food} | area: {area} | price: {price}"
        return f"{record}\nin a sentence, [{name} is a {price} place by the {area} that serves {food}]."
    host, event, day = rng.choice(words.PEOPLE), rng.choice(words.EVENTS), rng.choice(words.DAYS)
    record = f"host: {host} | event: {event} | day: {day} | area: {area}"
    return f"{record}\nin a sentence, [on {day} {host} gives a {event} at the {area}]."


def _parallel_sentences(rng: Random, world: World) -> str:
    sentence, language = draw_sentence(rng), rng.choice(words.LANGUAGES)
    adjective, noun, verb, other_adjective, other_noun = sentence
    english = f"the {adjective} {noun} {verb} the {other_adjective} {other_noun}"
    return f"{english}. in {language}, [{translate(world, language, sentence)}]."


def _choices(rng: Random, world: World) -> str:
    """A few words, one of which is repeated: picking one item out of a list."""
    pool = rng.choice((words.ROOMS, words.TOOLS, words.THINGS))
    items = rng.sample(pool, 3)
    return "\n".join(f"- {item}" for item in items) + f"\nnot {items[0]} and not {items[1]} but [{items[2]}]."


_KINDS: tuple[tuple[Callable[[Random, World], str], float], ...] = (
    (_facts, 26),
    (_hidden_things, 9),
    (_given_things, 9),
    (_rooms, 7),
    (_needs, 7),
    (_common_knowledge, 5),
    (_pronouns, 9),
    (_reviews, 4),
    (_paraphrases, 8),
    (_records, 6),
    (_parallel_sentences, 12),
    (_choices, 2),
)
