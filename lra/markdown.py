"""Tables as text."""

Table = list[list[str]]


def markdown(table: Table) -> str:
    """Return a table as aligned Markdown, its first row being the header."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])
