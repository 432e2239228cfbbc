"""A stand-in for Retrieval at the mini scale: pairs of documents in an invented language.

Every document has a topic, told by a few rare words that never stand near its beginning; the rest
are common words. Two documents belong together when they share their topic. Both topics are
drawn so that neither tells the label, and neither do the beginnings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lra.tasks.stand_ins import Draws, Example, StandIn
from lra.tasks.stand_ins.text import CONSONANTS, word

# The rare consonant of each topic.
TOPICS = "cfhjvwxz"
NUM_RARE = 3
BEGINNING = 50
MAX_LENGTH = 128


def document(draws: Draws, topic: int) -> bytes:
    """Write a document whose rare words start after byte 50."""
    words: list[str] = []
    while len(text := " ".join(words)) < BEGINNING:
        words.append(word(draws, CONSONANTS, draws.between(1, 3)))
    later: list[str] = []
    length = draws.between(100, MAX_LENGTH - 8) - len(text)
    while sum(map(len, later)) + len(later) < length:
        later.append(word(draws, CONSONANTS, draws.between(1, 3)))
    for place in draws.subset(NUM_RARE, 0, len(later) - 1):
        later[place] = word(draws, TOPICS[topic], 2)
    return f"{text} {' '.join(later)}"[:MAX_LENGTH].encode()


@dataclass(frozen=True, kw_only=True)
class RetrievalStandIn(StandIn):
    """Options of the stand-in: those of `StandIn`."""

    content: ClassVar[str] = "invented documents with rare topic words"

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Write the pairs of a split; see `StandIn`."""
        draws = Draws(f"retrieval stand-in/{self.data_seed}/{split}")
        for _ in range(count):
            label, topic = draws.between(0, 1), draws.between(0, len(TOPICS) - 1)
            other = (topic + draws.between(1, len(TOPICS) - 1)) % len(TOPICS)
            pair = document(draws, topic), document(draws, topic if label else other)
            yield label, pair
