"""A stand-in for Text at the mini scale: reviews in an invented language, written by this project.

A review praises and blames on both sides of a turn, and on each side one opinion leads by a single
word. The opinion that leads after the turn is the label. The lead before it is drawn independently
of the label, so a reader of the beginning learns nothing, and a reader who counts opinions finds a
tie whenever the two sides disagree. Words are made of syllables; only their consonants carry
meaning.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lra.tasks.stand_ins import Draws, Example, StandIn

CONSONANTS = "bdgklmnprst"
VOWELS = "aeiou"
# Consonants of blame and praise; the turn is the only word with a y.
OPINIONS = ("xz", "fv")
TURN = "yet"


def word(draws: Draws, consonants: str, syllables: int) -> str:
    """Draw a word."""
    return "".join(draws.letter(consonants) + draws.letter(VOWELS) for _ in range(syllables))


def _part(draws: Draws, length: int, opinion: int) -> list[str]:
    """Draw words of about `length` bytes: two or three of the opinion, one fewer of the other."""
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        words.append(word(draws, CONSONANTS, draws.between(1, 3)))
    lead = draws.between(2, 3)
    places = sorted(draws.subset(2 * lead - 1, 0, len(words) - 1))
    leading = draws.subset(lead, 0, len(places) - 1)
    for index, place in enumerate(places):
        words[place] = word(draws, OPINIONS[opinion if index in leading else 1 - opinion], 2)
    return words


@dataclass(frozen=True, kw_only=True)
class TextStandIn(StandIn):
    """Options of the stand-in: those of `StandIn`."""

    version: ClassVar[int] = 2
    content: ClassVar[str] = "invented reviews of two minds, with a turn"

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Write the reviews of a split; see `StandIn`."""
        draws = Draws(f"text stand-in/{self.data_seed}/{split}")
        for _ in range(count):
            early, label = draws.between(0, 1), draws.between(0, 1)
            before = _part(draws, draws.between(70, 130), early)
            after = _part(draws, draws.between(50, 90), label)
            text = " ".join([*before, TURN, *after])
            yield label, (text.encode(),)
