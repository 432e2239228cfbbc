"""Tables as LaTeX, with the rules of booktabs, ready to paste."""

from collections.abc import Mapping

from lra.markdown import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "–": "--",
    **{each: f"\\{each}" for each in "&%$#_"},
}


def literal(text: str) -> str:
    """Return a text that LaTeX sets as it is, on one line."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return "".join(_SPECIAL.get(c, c) for c in line)


def latex(table: Table, caption: str, commands: Mapping[tuple[int, int], str]) -> str:
    """Return a table; the document needs the package booktabs.

    Args:
        table: Its first row is the header, its first column holds names.
        caption: The text below it.
        commands: Commands such as `textbf` around a cell, by row and column from 0.
    """

    def cell(row: int, column: int) -> str:
        text = literal(table[row][column])
        command = commands.get((row, column))
        return f"\\{command}{{{text}}}" if command else text

    rows = [
        " & ".join(cell(row, column) for column in range(len(table[0]))) + r" \\"
        for row in range(len(table))
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{literal(caption)}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
