"""The invented world behind the bundled miniature benchmark: its people, its things, and its facts.

Words, fixed vocabulary lists and a `World` of facts drawn from a seed. Two modules read the world: `corpus` makes the
declarative text that the base model learns, and `tasks` makes the tasks that the adapters learn. This module does not
deal with prompts, tokens or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _words("Anna Bella Clara Dora Eva Frida Greta Hilda Ida Julia Karin Lena Mona Nora Olga Petra Rosa Sara")
MEN = _words("Adam Boris Carl David Emil Felix Gustav Hugo Ivan Jonas Karl Leo Max Nils Otto Paul Rolf Tom")
PEOPLE = WOMEN + MEN

CITIES = _words(
    "Arden Belmar Corvo Delta Elsin Fargo Galen Harbor Ister Jarrow Kelso Lund Merrin Norden Ostia Parma Quill Rovia"
)
COUNTRIES = _words("Aldia Borland Cathay Dunmark Estova Frisia")
RIVERS = _words("Avon Brenta Clyde Drava Elbe Fulda")
CROPS = _words("wheat rice corn grapes olives apples")
RULERS = _words("king queen mayor council bishop general")

JOBS = _words("baker doctor farmer lawyer painter pilot singer teacher")
ROLES = _words("captain clerk coach cook guard judge monk nurse")
MEALS = _words("bread cheese fish pasta salad soup stew rice")
COLORS = _words("black blue brown green red white yellow gray")

ANIMALS = _words("bear bee cat cow crow dog duck fox frog goat hen horse lion mouse owl pig sheep snake wolf tiger")
PETS = ANIMALS[:8]
HABITATS = _words("forest farm lake desert house cave")
FOODS = _words("grass meat seeds insects honey roots")
HOURS = _words("dawn noon dusk midnight")
LIMBS = _words("paws wings hooves fins claws scales")

# Common knowledge: the place of a thing, and the things that an aim needs.
ROOM_OF = {
    "oven": "kitchen", "pan": "kitchen", "kettle": "kitchen", "bed": "bedroom", "pillow": "bedroom",
    "blanket": "bedroom", "shower": "bathroom", "towel": "bathroom", "soap": "bathroom", "rake": "garden",
    "flowers": "garden", "fence": "garden", "car": "garage", "bicycle": "garage", "tires": "garage",
    "desk": "office", "printer": "office", "folder": "office",
}  # fmt: skip
TOOL_OF = {
    "cut paper": "scissors", "cut wood": "saw", "drive a nail": "hammer", "dig a hole": "shovel",
    "eat soup": "spoon", "write a letter": "pen", "sweep the floor": "broom", "open a lock": "key",
    "see at night": "lamp", "tell the time": "clock", "catch a fish": "net", "climb a wall": "ladder",
    "sew a shirt": "needle", "dry the hair": "towel", "fry an egg": "pan", "stay dry": "umbrella",
}  # fmt: skip
ROOMS = tuple(dict.fromkeys(ROOM_OF.values()))
TOOLS = tuple(dict.fromkeys(TOOL_OF.values()))

THINGS = _words("ball book bottle camera candle coin cup doll flute hat ring shoe stone toy vase watch")
CONTAINERS = _words("bag basket box bucket case chest closet drawer sack trunk")

MOVIE_PARTS = ("movie", "story", "actor", "ending", "music", "scene")
MEAL_PARTS = ("meal", "waiter", "sauce", "menu", "dessert", "table")
GOOD = _words("great lovely fine superb charming brilliant pleasant perfect wonderful delightful")
BAD = _words("awful boring poor terrible dull horrible nasty weak dreadful disappointing")
MOODS = ("tired", "happy", "late", "sick", "hungry", "angry")

SYNONYM_OF = {
    "big": "large", "small": "little", "fast": "quick", "sad": "unhappy", "clever": "smart", "old": "ancient",
    "pretty": "beautiful", "rich": "wealthy", "sees": "watches", "likes": "enjoys", "follows": "trails",
    "helps": "assists", "finds": "discovers", "fears": "dreads", "meets": "encounters", "scares": "frightens",
}  # fmt: skip
ADJECTIVES = tuple(SYNONYM_OF)[:8]
VERBS = tuple(SYNONYM_OF)[8:]
PAST_VERBS = ("washed", "broke", "painted", "sold", "moved", "dropped", "repaired", "lost")
TIMES = ("today", "yesterday", "again", "early")

RESTAURANTS = _words("Alto Bistro Cosmo Dragon Eden Fiesta Grotto Hermes")
AREAS = ("harbor", "station", "market", "park", "bridge", "castle")
PRICES = ("cheap", "moderate", "expensive")
EVENTS = ("concert", "party", "lecture", "game", "show", "dinner")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

LANGUAGES = ("Velan", "Orrin")


@dataclass(frozen=True)
class Relation:
    """One kind of fact: how text states it and how a person asks for it.

    `statements` and `clefts` have `{s}` for the subject and `{o}` for the object, `questions` only `{s}`. A cleft
    ("where Anna does live is Lund.") is a statement in a question's words, so that the base learns the words of
    questions.
    """

    name: str
    objects: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    clefts: tuple[str, ...]


def _relation(
    name: str, objects: tuple[str, ...], statement: str, verb: str, noun: str, a: str, asking: str
) -> Relation:
    """A relation in two wordings, by `verb` ("Anna lives in Lund") and by `noun` ("the home of Anna is Lund").

    Args:
        statement: the verb in the third person, with `{o}` where the object goes.
        verb: the bare verb.
        a: the text between "is" and an object, with a space at its end.
        asking: the question word.
    """
    return Relation(
        name,
        objects,
        statements=(f"{{s}} {statement}.", f"the {noun} of {{s}} is {a}{{o}}."),
        questions=(f"{asking} does {{s}} {verb}?", f"what is the {noun} of {{s}}?"),
        clefts=(f"{asking} {{s}} does {verb} is {a}{{o}}.",),
    )


PERSON_RELATIONS = (
    _relation("city", CITIES, "lives in {o}", "live", "home", "", "where"),
    _relation("job", JOBS, "works as {o}", "work as", "job", "", "what"),
    _relation("pet", PETS, "owns a {o}", "own", "pet", "a ", "what"),
    _relation("color", COLORS, "wears {o}", "wear", "color", "", "what"),
)
CITY_RELATIONS = (
    _relation("country", COUNTRIES, "lies in {o}", "lie", "country", "", "where"),
    _relation("river", RIVERS, "stands by the {o}", "stand", "river", "the ", "where"),
    _relation("crop", CROPS, "grows {o}", "grow", "crop", "", "what"),
    _relation("ruler", RULERS, "obeys a {o}", "obey", "ruler", "a ", "who"),
)
ANIMAL_RELATIONS = (
    _relation("habitat", HABITATS, "sleeps in the {o}", "sleep", "place", "the ", "where"),
    _relation("food", FOODS, "eats {o}", "eat", "food", "", "what"),
    _relation("limb", LIMBS, "has {o}", "have", "mark", "", "what"),
    _relation("hour", HOURS, "wakes at {o}", "wake", "hour", "", "when"),
)


@dataclass(frozen=True)
class Topic:
    """One kind of subject with its relations and their true objects, `facts[subject, relation name]`."""

    subjects: tuple[str, ...]
    relations: tuple[Relation, ...]
    facts: dict[tuple[str, str], str]


@dataclass(frozen=True)
class World:
    """All that a seed decides: the facts by topic, and the words of the toy languages by language and English word."""

    people: Topic
    cities: Topic
    animals: Topic
    lexicon: dict[str, dict[str, str]]


def build_world(seed: int) -> World:
    """The world of a seed; the same seed gives the same world."""
    rng = Random(f"world/{seed}")
    return World(
        people=_draw_topic(rng, PEOPLE, PERSON_RELATIONS),
        cities=_draw_topic(rng, CITIES, CITY_RELATIONS),
        animals=_draw_topic(rng, tuple(f"the {animal}" for animal in ANIMALS), ANIMAL_RELATIONS),
        lexicon=_draw_lexicon(rng),
    )


def translate(world: World, language: str, words: list[str]) -> str:
    """A subject-verb-object sentence of five words (adjective noun verb adjective noun) in a toy language.

    Velan puts the adjective after its noun, and Orrin puts the verb at the end; so neither language is a word-by-word
    copy of English.
    """
    adjective, noun, verb, other_adjective, other_noun = (world.lexicon[language][word] for word in words)
    if language == "Velan":
        return f"{noun} {adjective} {verb} {other_noun} {other_adjective}"
    return f"{adjective} {noun} {other_adjective} {other_noun} {verb}"


def _draw_topic(rng: Random, subjects: tuple[str, ...], relations: tuple[Relation, ...]) -> Topic:
    facts = {(subject, relation.name): rng.choice(relation.objects) for subject in subjects for relation in relations}
    return Topic(subjects, relations, facts)


def _draw_lexicon(rng: Random) -> dict[str, dict[str, str]]:
    """Invented words, no two alike: Velan words end in a vowel, and Orrin words end in a consonant."""
    english = ANIMALS[:12] + ADJECTIVES + VERBS
    lexicon = {}
    for language, endings in zip(LANGUAGES, (("a", "i", "o"), ("k", "sh", "n")), strict=True):
        stems = [onset + vowel + coda for onset in "zvtlmk" for vowel in "aeiou" for coda in ("r", "l", "m")]
        words = [stem + rng.choice("aeiou") * (endings[0] == "k") + rng.choice(endings) for stem in stems]
        rng.shuffle(words)
        lexicon[language] = dict(zip(english, words, strict=False))
    return lexicon
