"""A stand-in for Text at the mini scale: reviews in an invented language, written by this project.

A review praises or blames at several places, all one way, until a turn; what follows the turn
decides and may overturn what came before. The first part's opinion is drawn apart from the label,
so that a reader of the beginning learns nothing, and one who counts opinions errs where the two
parts disagree. Words are syllables; only their consonants tell what they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lra.tasks.stand_ins import Draws, Example, StandIn

CONSONANTS = "bdgklmnprst"
VOWELS = "aeiou"
# Consonants of blame and praise; a turn is the one word with a y.
OPINIONS = ("xz", "fv")
TURN = "yet"
MAX_LENGTH = 256


def word(draws: Draws, consonants: str, syllables: int) -> str:
    """Draw a word."""
    return "".join(draws.letter(consonants) + draws.letter(VOWELS) for _ in range(syllables))


def _part(draws: Draws, length: int, opinion: int, times: int) -> list[str]:
    """Draw words of about `length` bytes, so many of which hold the opinion."""
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        words.append(word(draws, CONSONANTS, draws.between(1, 3)))
    for place in draws.subset(times, 0, len(words) - 1):
        words[place] = word(draws, OPINIONS[opinion], 2)
    return words


@dataclass(frozen=True, kw_only=True)
class TextStandIn(StandIn):
    """Options of the stand-in: those of `StandIn`."""

    content: ClassVar[str] = "invented reviews with a turn"

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Write the reviews of a split; see `StandIn`."""
        draws = Draws(f"text stand-in/{self.data_seed}/{split}")
        for _ in range(count):
            early, label = draws.between(0, 1), draws.between(0, 1)
            before = _part(draws, draws.between(80, 140), early, draws.between(1, 3))
            after = _part(draws, draws.between(50, 100), label, draws.between(1, 3))
            text = " ".join([*before, TURN, *after])
            yield label, (text[:MAX_LENGTH].encode(),)
