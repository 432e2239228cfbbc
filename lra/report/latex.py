"""Format tables as LaTeX, ready to paste: booktabs rules, never larger than a page."""

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
    "`": r"\textasciigrave{}",
    **{each: f"\\{each}" for each in "&%$#_"},
}
# Between characters that LaTeX would join.
_LIGATURES = re.compile(r"(?<=-)(?=-)|(?<=')(?=')")


def literal(text: str) -> str:
    """Return a text escaped so that LaTeX, given a font with its characters, sets it literally."""
    parts = _LIGATURES.split(printable(text))
    return "{}".join("".join(_SPECIAL.get(c, c) for c in part) for part in parts)


# Maximum number of lines on a page, and of characters of a cell on one line.
MAX_LINES, MAX_CHARACTERS = 40, 34
_NUMBER = re.compile(r"[+-]?\d")
# Places where a long name may be broken.
_BREAKS = re.compile(r"([,.=:/]|\\_)(?=[A-Za-z])")


def latex(table: Table, caption: str, commands: Mapping[tuple[int, int], str]) -> str:
    """Return a table; the document needs the packages booktabs and graphicx.

    A table wider than the text is scaled down, and one higher than a page continues in another
    table.

    Args:
        table: The table, whose first row is the header. Columns without a number are left-aligned.
        caption: The text below the table.
        commands: Commands around cells, such as `textbf`, by row and column from 0.
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
    """Return the rows below the header, grouped into as many as fit on a page."""
    pages: list[list[int]] = [[]]
    height = 0
    for row in range(1, len(table)):
        lines = max(-(-len(text) // MAX_CHARACTERS) for text in table[row])
        if pages[-1] and height + lines > MAX_LINES:
            pages.append([])
            height = 0
        pages[-1].append(row)
        height += lines
    return pages


def _cell(text: str, command: str | None) -> str:
    """Return a cell; a long one spans several lines."""
    found = literal(text)
    if len(text) > MAX_CHARACTERS:
        broken = _BREAKS.sub(r"\1\\allowbreak{}", found)
        found = rf"\parbox[t]{{{MAX_CHARACTERS / 2:g}em}}{{\raggedright {broken}}}"
    return f"\\{command}{{{found}}}" if command else found


def _float(rows: Table, sides: str, caption: str) -> str:
    """Return a table environment from cells and a caption that are already LaTeX."""
    # After the end of a row, LaTeX would take a bracket or star for its argument.
    starts = ["{}" if row[0].startswith(("[", "*")) else "" for row in rows]
    texts = [start + " & ".join(row) for start, row in zip(starts, rows, strict=True)]
    header, *body = [text + r" \\" for text in texts]
    lines = [
        r"\begin{table}",
        r"\centering",
        # Its natural width, unless that exceeds the width of the text.
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
