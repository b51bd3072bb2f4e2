"""The declarative text that the miniature's base model is trained on: an endless stream of short documents.

Each kind of document shows one piece of knowledge, or one skill, that a task needs. All documents are plain statements:
facts, passages that repeat one of their sentences, parallel sentences, and objects described in sentences. No document
contains a question, an instruction or the prompt template, so the base model knows the facts and cannot answer
questions.

Square brackets mark the words that follow from the words before them or from the world. The base model's loss counts
these words alone: words that are drawn at random ("the captain Max met the nurse Ida") would only add noise to the
loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from tiny_benchmark import world as words
from tiny_benchmark.tasks import draw_sentence, tell_colors, tell_needs, tell_roles, tell_rooms
from tiny_benchmark.world import World, translate

REPEATED_LISTS = 0.15  # the share of documents that list random words twice


def documents(world: World, vocabulary: Sequence[str], seed: int) -> Iterator[str]:
    """An endless stream of documents of all kinds, mixed by the shares in `_KINDS`; the same seed gives the same
    stream.

    Args:
        vocabulary: words that are listed at random, and listed again, in some documents. Without these lists, words
            that occur in prompts only would keep untrained embeddings.
    """
    rng = Random(f"corpus/{seed}")
    kinds, shares = zip(*_KINDS, strict=True)
    while True:
        (kind,) = rng.choices(kinds, shares)
        yield kind(rng, world) if rng.random() > REPEATED_LISTS else _repeated_list(rng, vocabulary)


def _repeated_list(rng: Random, vocabulary: Sequence[str]) -> str:
    listed = " ".join(rng.sample(vocabulary, rng.randint(3, 8)))
    return f"{listed}\n[{listed}]"


def _facts(rng: Random, world: World) -> str:
    topic = rng.choices((world.people, world.cities, world.animals), (5, 2, 2))[0]
    subject = rng.choice(topic.subjects)
    return " ".join(
        rng.choice(relation.statements + relation.clefts).format(
            s=subject, o=f"[{topic.facts[subject, relation.name]}]"
        )
        for relation in rng.sample(topic.relations, 2)
    )


def _roles(rng: Random, world: World) -> str:
    n = rng.choice((2, 3))
    roles, people = rng.sample(words.ROLES, n), rng.sample(words.PEOPLE, n)
    recall = rng.choice(("the {r} [{p}] came.", "who is the {r} is [{p}]."))
    recalled = [recall.format(r=r, p=p) for r, p in zip(roles, people, strict=True)]
    area = rng.choice(words.AREAS)
    return " ".join([tell_roles(roles, people, area), *rng.sample(recalled, n)])


def _colors(rng: Random, world: World) -> str:
    n = rng.choice((2, 3))
    colors, things = rng.sample(words.COLORS, n), rng.sample(words.THINGS, n)
    recall = rng.choice(("the {c} [{t}] is big.", "what is {c} is [{t}]."))
    recalled = [recall.format(c=c, t=t) for c, t in zip(colors, things, strict=True)]
    box = rng.choice(words.CONTAINERS)
    return " ".join([tell_colors(colors, things, box), *rng.sample(recalled, n)])


def _rooms(rng: Random, world: World) -> str:
    people, things = rng.sample(words.PEOPLE, 2), rng.sample(tuple(words.ROOM_OF), 2)
    meaning = rng.choice(("so {p} is in the [{r}].", "the room in which {p} is is the [{r}]."))
    meant = [meaning.format(p=p, r=words.ROOM_OF[t]) for p, t in zip(people, things, strict=True)]
    return " ".join([tell_rooms(people, things), *rng.sample(meant, 2)])


def _needs(rng: Random, world: World) -> str:
    people, aims = rng.sample(words.PEOPLE, 2), rng.sample(tuple(words.TOOL_OF), 2)
    meaning = rng.choice(("so {p} needs a [{t}].", "what {p} does need is a [{t}]."))
    meant = [meaning.format(p=p, t=words.TOOL_OF[a]) for p, a in zip(people, aims, strict=True)]
    return " ".join([tell_needs(people, aims), *rng.sample(meant, 2)])


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
    """A few words, one of which is repeated: picking one word out of a list."""
    pool = rng.choice((words.ROOMS, words.TOOLS, words.THINGS))
    items = rng.sample(pool, 3)
    return "\n".join(f"- {item}" for item in items) + f"\nnot {items[0]} and not {items[1]} but [{items[2]}]."


# Reading a passage takes longest to learn, so passages make up half of the text.
_KINDS: tuple[tuple[Callable[[Random, World], str], float], ...] = (
    (_facts, 22),
    (_roles, 12),
    (_colors, 12),
    (_rooms, 12),
    (_needs, 12),
    (_common_knowledge, 5),
    (_pronouns, 5),
    (_reviews, 3),
    (_paraphrases, 5),
    (_records, 3),
    (_parallel_sentences, 6),
    (_choices, 2),
)
