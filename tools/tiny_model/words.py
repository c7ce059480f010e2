"""Real and invented words, names and places.

Knows: lists of real words and how invented ones are put together.
Does not know: which of them are held out (`heldout.py`), nor what tasks do with them.
"""

from __future__ import annotations

import random


def listed(text: str) -> tuple[str, ...]:
    """Returns the words of a text."""
    return tuple(text.split())


NAMES: tuple[str, ...] = listed(
    """Adam Agnes Ahmed Aisha Alan Alice Amir Amy Andrea Anna Anton Ben Bella Bob Boris Bruno
    Carla Carlos Cathy Chen Clara Claire Daniel David Diana Dora Edward Elena Eli Ella Emil Emma
    Eric Eva Fatima Felix Fiona Frank Frida George Gina Grace Greta Hana Hannah Harry Helen Henry
    Hugo Ida Igor Ines Ingrid Isaac Ivan Jack Jacob James Jane Jasmin Jim Joan Joe John Jonas
    Julia Karim Karl Kate Kenji Klaus Lara Laura Lea Lena Leo Liam Lily Linda Lisa Lucas Lucy
    Luke Maria Mark Marta Martin Mary Max Maya Mia Mike Mila Mina Nadia Nick Nina Noah Nora Olga
    Oliver Omar Oscar Otto Paul Paula Pedro Peter Petra Rachel Ravi Rita Robert Rosa Ruth Sam
    Sara Sofia Simon Stefan Susan Tara Theo Thomas Tim Tina Tom Uma Vera Victor Viola Walter
    Wendy William Yara Yuki Zoe"""
)
# Real names that no training text may contain.
TEST_NAMES: tuple[str, ...] = listed(
    """Abigail Bernard Celeste Dominic Esther Fabian Gustav Heidi Ismail Josefa Kirsten Leonard
    Mathilde Nikolai Ophelia Patrick Quentin Roxana Sebastian Tabitha Ulrich Veronica Wilfred
    Xenia Yolanda Zachary"""
)

CITIES: tuple[str, ...] = listed(
    """Paris London Berlin Rome Madrid Vienna Oslo Lisbon Athens Dublin Prague Warsaw Budapest
    Helsinki Stockholm Copenhagen Amsterdam Brussels Bern Zurich Hamburg Munich Milan Naples
    Boston Chicago Dallas Denver Seattle Miami Toronto Ottawa Tokyo Osaka Kyoto Seoul Beijing
    Shanghai Delhi Mumbai Cairo Nairobi Lima Bogota Santiago Sydney Melbourne Perth Dakar Tunis
    Moscow Kiev Istanbul Ankara Barcelona Porto Lyon Geneva Basel Graz"""
)
TEST_CITIES: tuple[str, ...] = listed(
    """Bratislava Cordoba Dresden Edinburgh Florence Granada Havana Izmir Jakarta Kingston
    Liverpool Marseille Nagoya Odessa Palermo Quito Rotterdam Salzburg Tallinn Utrecht Valencia
    Winnipeg"""
)

WORDS: tuple[str, ...] = listed(
    """able acorn actor air album anchor ankle ant apple april apron arm arrow artist aunt autumn
    baby bag ball banana band bank barn basket bath beach bean bear bed bee bell bench berry bike
    bird blanket boat body bone book boot bottle bowl box boy brain branch bread brick bridge
    broom brother brush bucket bus butter button cabin cable cake camel camera camp candle car
    card carpet carrot castle cat cave chair chalk cheese cherry chicken child church circle city
    clock cloud clown coat coffee coin comb cook copper corn cotton cow crab crane cream crown cup
    curtain daisy dance deer desk dinner dish doctor dog doll donkey door dragon dream dress drum
    duck dust eagle ear earth east egg elbow elephant engine eye fabric face family farm father
    feather fence fern field finger fire fish flag flame floor flower flute fog food foot forest
    fork fox frog fruit garden gate ghost gift giraffe glass glove goat gold goose grape grass
    guitar hair hammer hand harbor hat hawk heart helmet hen hill honey hook horn horse hotel
    house ice idea igloo ink insect iron island ivory jacket jam jar jelly jewel jungle kettle
    key king kitchen kite kitten knee knife ladder lake lamp leaf leather lemon letter library
    light lion lizard lock lunch machine magnet map market mask match meadow melon metal milk
    mirror monkey moon morning mother motor mountain mouse mouth mud museum music nail neck needle
    nest net night north nose number nurse oak ocean office oil olive onion orange oven owl page
    paint palace panda paper park parrot pasta peach pear pen pencil penguin pepper piano picture
    pig pillow pilot pizza planet plant plate plum pocket poem pond pony potato prince pumpkin
    puzzle queen quilt rabbit radio rain rat ribbon rice ring river road robot rock roof room
    rope rose ruler sail salad salt sand school sea seed sheep shell ship shirt shoe shop silver
    sister skirt sky sleep smoke snail snake snow soap sock sofa soup spoon spring square stamp
    star station stick stone storm street sugar summer sun swan table tail tea teacher tent test
    thumb tiger toast tomato tool tooth tower town toy train tree truck trumpet tulip turtle
    umbrella uncle valley vase village violin voice wagon wall water wave wheel whale whistle
    wind window wing winter wolf wood wool yard year yellow zebra zoo"""
)
# Real words that no training text may contain.
TEST_WORDS: tuple[str, ...] = listed(
    """almond badger blossom cactus canyon copier dolphin emerald falcon fiddle ginger hamster
    hazel iguana jigsaw kennel lantern lobster marble mitten mustard nectar nutmeg orchid oyster
    paddle pebble pigeon plaster quartz raven saddle salmon scarf sparrow spider teapot thistle
    thunder trolley tunnel turnip velvet vinegar walnut weasel wicket willow yogurt zipper"""
)

_ONSETS = listed("b c d f g h j k l m n p r s t v w z br cr dr gr tr pr st sh ch th pl fl gl kl sk sp qu")
_VOWELS = listed("a e i o u a e i o u ai ea ee oo ou ie y")
_CODAS = listed("n r l s t m k d ck nd st rt p x ng sh ll")


def invented_word(rng: random.Random) -> str:
    """Returns a pronounceable lower-case word of two or three syllables."""
    parts: list[str] = []
    if rng.random() < 0.15:
        parts.append(rng.choice("aeiou"))
    for _ in range(2 if rng.random() < 0.75 else 3):
        parts.append(rng.choice(_ONSETS))
        parts.append(rng.choice(_VOWELS))
    if rng.random() < 0.6:
        parts.append(rng.choice(_CODAS))
    return "".join(parts)


def invented_name(rng: random.Random) -> str:
    """Returns an invented name of a person."""
    stem = invented_word(rng)[:6].rstrip("aeiouy")
    return (stem + rng.choice(("a", "o", "e", "i", "an", "el", "in", "ia", "us", "ka", ""))).capitalize()


def invented_city(rng: random.Random) -> str:
    """Returns an invented name of a place."""
    stem = invented_word(rng)[:6]
    ends = ("burg", "ville", "ton", "stad", "ford", "port", "ia", "ora", "heim", "grad", "")
    return (stem + rng.choice(ends)).capitalize()
