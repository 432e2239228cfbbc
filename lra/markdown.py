"""Tables as text."""

from lra.words import printable

Table = list[list[str]]


def escaped(text: str) -> str:
    """Return a text as one line that neither ends a cell of a table nor begins HTML.

    Tables are read on terminals too, so marks such as `_` and `*` stay; unprintable characters,
    which may move the cursor, do not.
    """
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def markdown(table: Table) -> str:
    """Return a table as aligned Markdown; its first row is the header."""
    table = [[escaped(text) for text in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])
