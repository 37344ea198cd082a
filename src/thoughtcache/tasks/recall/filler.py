"""Ordinary sentences to put between a fact and its question; training and probes have none in common.

Facts for probes on a model of the user's come with its own text: `sentences_of` reads any file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

_PEOPLE = ("Anna", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kemal", "Lucia")
_PLACES = ("market", "library", "station", "bakery", "museum", "harbour", "school", "garden", "office", "theatre")
_THINGS = ("books", "pencils", "eggs", "tickets", "stamps", "shirts", "plates", "flowers", "coins", "lamps")
TRAINING_FORMS = (
    "{person} goes to the {place} and buys {number} {thing} for a friend.",
    "There are {number} {thing} on the table, and {person} takes some of them home.",
    "On Monday the {place} was closed, so {person} waited until the next day.",
    "{person} counted {number} {thing} twice and wrote the result on a small card.",
    "If each box holds {number} {thing}, how many boxes does {person} need?",
    "The walk from the {place} to the river takes about {number} minutes.",
    "{person} and {other} share {number} {thing} so that both get the same.",
    "In the evening {person} reads a little, and then the lights go out.",
    "The price of the {thing} at the {place} went up by {number} percent.",
    "{other} asked whether the {place} sells {thing}, but nobody knew.",
    "First we add the numbers, then we compare the sum with {number}.",
    "It rained all morning, and the {thing} in front of the {place} got wet.",
)
TEST_FORMS = (
    "Near the {place}, {person} met {other}, who was carrying {number} heavy {thing}.",
    "Nobody remembers why {number} {thing} were left behind at the {place} last year.",
    "A train with {number} passengers stops, and {person} steps out without any {thing}.",
    "Let us look at the next problem: {person} sells {thing} in groups of {number}.",
    "After lunch {other} cleaned the {place} while {person} repaired old {thing}.",
    "Only half of the {number} {thing} that {person} ordered have arrived so far.",
)
OTHER_SENTENCES = (
    "Water boils at a lower temperature high up in the mountains.",
    "A function that calls itself needs a case in which it stops.",
    "The old map shows two roads that nobody uses today.",
    "Stir the soup slowly, and add a little salt at the end.",
    "Most birds of this kind leave the north before the first frost.",
    "The committee will publish its report after the summer break.",
    "An index makes reading fast and writing slow.",
    "Her second novel was translated into eleven languages.",
    "The valve must be closed before the pump is switched on.",
    "Light from that star has travelled for nine hundred years.",
    "In the third act the king learns who sent the letter.",
    "Trade between both ports fell sharply during the war.",
    "If the test fails, look at the log before you run it again.",
    "Glass is neither quite a solid nor quite a liquid.",
    "The orchestra tuned while the hall was still half empty.",
    "A good hinge needs oil once a year and nothing else.",
)
"""Sentences of other kinds than the forms above; a task takes half of them for training and half for probes."""


def sentence(forms: Sequence[str], random: Random) -> str:
    """One sentence, drawn."""
    person, other = random.sample(_PEOPLE, 2)
    return random.choice(forms).format(
        person=person,
        other=other,
        place=random.choice(_PLACES),
        thing=random.choice(_THINGS),
        number=random.randint(2, 60),
    )


def sentences_of(path: str | Path) -> list[str]:
    """The sentences of a text file.

    Raises:
        ValueError: if there is none.
    """
    text = Path(path).read_text(encoding="utf-8")
    found = [one.strip() for one in re.split(r"(?<=[.!?])\s+", text) if one.strip()]
    if not found:
        raise ValueError(f"{path} holds no sentence; give a file with running text")
    return found
