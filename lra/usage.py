"""What `lra COMMAND --help` says, read from a command's source without importing it."""

import ast
from collections.abc import Iterator
from pathlib import Path


def usage(file: Path) -> str:
    """Return the docstring of a command's module, and the arguments that its parser takes.

    Args:
        file: The module's file.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lines = list(_arguments(tree))
    return "\n".join(
        [ast.get_docstring(tree) or "", *(["", "arguments:", *lines] if lines else [])]
    )


def _arguments(tree: ast.Module) -> Iterator[str]:
    """Yield a line for each `add_argument` whose name and help are written out."""
    for node in ast.walk(tree):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if not named or node.func.attr != "add_argument":  # type: ignore[attr-defined]  # an Attribute, as asked for above
            continue
        assert isinstance(node, ast.Call)
        names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        keywords = {k.arg: k.value for k in node.keywords}
        text = keywords.get("help")
        if names and isinstance(text, ast.Constant):
            default = keywords.get("default")
            shown = default.value if isinstance(default, ast.Constant) else ""
            about = str(text.value).replace("%(default)s", str(shown))
            yield f"  {', '.join(map(str, names)):<16}  {about}"
