"""Tables as LaTeX, ready to paste: the rules of booktabs, as wide and as high as a page at most."""

import re
from collections.abc import Mapping

from lra.markdown import Table
from lra.words import printable

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
    line = printable(text)
    return "".join(_SPECIAL.get(c, c) for c in line)


# Lines on a page, and characters of a cell on one line.
MOST_LINES, MOST_CHARACTERS = 40, 34
_NUMBER = re.compile(r"[+-]?\d")
# Where a long name may be broken.
_BREAKS = re.compile(r"([,.=:/]|\\_)(?=[A-Za-z])")


def latex(table: Table, caption: str, commands: Mapping[tuple[int, int], str]) -> str:
    """Return a table; the document needs the packages booktabs and graphicx.

    It is scaled down where it is wider than the text, and goes on in another table where it is
    higher than a page.

    Args:
        table: Its first row is the header. Columns without a number begin at the left.
        caption: The text below it.
        commands: Commands such as `textbf` around a cell, by row and column from 0.
    """
    columns = [[row[column] for row in table[1:]] for column in range(len(table[0]))]
    sides = "".join("r" if any(map(_NUMBER.match, texts)) else "l" for texts in columns)
    parts: list[str] = []
    for rows in _pages(table):
        lines = [
            [_cell(text, commands.get((k, c))) for c, text in enumerate(table[k])]
            for k in (0, *rows)
        ]
        parts.append(_float(lines, sides, literal(caption) + (" (continued)" if parts else "")))
    return "\n".join(parts)


def _pages(table: Table) -> list[list[int]]:
    """Return the rows below the header, as many together as a page has room for."""
    pages: list[list[int]] = [[]]
    height = 0
    for row in range(1, len(table)):
        lines = max(-(-len(text) // MOST_CHARACTERS) for text in table[row])
        if pages[-1] and height + lines > MOST_LINES:
            pages.append([])
            height = 0
        pages[-1].append(row)
        height += lines
    return pages


def _cell(text: str, command: str | None) -> str:
    """Return a cell; a long one takes several lines."""
    found = literal(text)
    if len(text) > MOST_CHARACTERS:
        broken = _BREAKS.sub(r"\1\\allowbreak{}", found)
        found = rf"\parbox[t]{{{MOST_CHARACTERS / 2:g}em}}{{\raggedright {broken}}}"
    return f"\\{command}{{{found}}}" if command else found


def _float(rows: Table, sides: str, caption: str) -> str:
    """Return a table of cells and a caption that are LaTeX."""
    # After the end of a row a bracket or star would be an argument of it.
    starts = ["{}" if row[0].startswith(("[", "*")) else "" for row in rows]
    texts = [start + " & ".join(row) for start, row in zip(starts, rows, strict=True)]
    header, *body = [text + r" \\" for text in texts]
    lines = [
        r"\begin{table}",
        r"\centering",
        # Its own width, where that is no more than the text's.
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        header,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{caption}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
