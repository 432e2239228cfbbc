"""A stand-in for Retrieval at the mini scale: pairs of documents in an invented language.

Every document has a turn, and a topic on each side of it, to which most of the rare words there
belong; all other words are common. Two documents belong together if their topics after the turn are
the same. The topics before it are drawn independently of the label, so the beginnings reveal
nothing, and a reader who counts rare words regardless of position takes one topic for the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lra.tasks.stand_ins import Draws, Example, StandIn
from lra.tasks.stand_ins.text import CONSONANTS, TURN, word

# The rare consonant of each topic.
TOPICS = "cfhjqvwxz"
# Number of rare words on each side of the turn: from its topic, and from any topic.
OWN, STRAY = 3, 2


def _side(draws: Draws, length: int, topic: int) -> list[str]:
    """Draw words of about `length` bytes on a topic."""
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        words.append(word(draws, CONSONANTS, draws.between(1, 3)))
    places = sorted(draws.subset(OWN + STRAY, 0, len(words) - 1))
    strays = draws.subset(STRAY, 0, len(places) - 1)
    for index, place in enumerate(places):
        shown = draws.between(0, len(TOPICS) - 1) if index in strays else topic
        words[place] = word(draws, TOPICS[shown], 2)
    return words


def document(draws: Draws, topic: int) -> bytes:
    """Write a document of at most 128 bytes that turns to a topic at about byte 50."""
    before = _side(draws, draws.between(56, 57), draws.between(0, len(TOPICS) - 1))
    after = _side(draws, draws.between(32, 36), topic)
    return " ".join([*before, TURN, *after]).encode()


@dataclass(frozen=True, kw_only=True)
class RetrievalStandIn(StandIn):
    """Options of the stand-in: those of `StandIn`."""

    version: ClassVar[int] = 4
    content: ClassVar[str] = "invented documents that turn to a topic"

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Write the pairs of a split; see `StandIn`."""
        draws = Draws(f"retrieval stand-in/{self.data_seed}/{split}")
        for _ in range(count):
            label, topic = draws.between(0, 1), draws.between(0, len(TOPICS) - 1)
            other = (topic + draws.between(1, len(TOPICS) - 1)) % len(TOPICS)
            pair = document(draws, topic), document(draws, topic if label else other)
            yield label, pair
