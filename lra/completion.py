"""Complete words in a shell: commands, keys, and the names that a group offers.

    eval "$(lra completion bash)"
    autoload -U +X bashcompinit && bashcompinit && eval "$(lra completion bash)"

Put the first line into `~/.bashrc` for bash, or the second into `~/.zshrc` for zsh.
"""

import os
import sys

from lra.__main__ import COMMANDS
from lra.compose import groups, known_keys
from lra.terminal import run

SCRIPT = "complete -o nospace -o default -C 'lra completion --words' lra"
GROUPS = ("task", "attention", "pretrain", "protocol", "scale", "experiment", "search", "debug")


def candidates(line: str) -> list[str]:
    """Return the completions of a line's last word, without the part up to its `=`.

    Args:
        line: Such as `lra train task=lis`.
    """
    words = line.split(" ")
    if len(words) == 2:
        return [f"{name} " for name in COMMANDS if name.startswith(words[1])]
    key, equals, value = words[-1].partition("=")
    if not equals:
        keys = [*GROUPS, *(each for each in known_keys() if not each.endswith("."))]
        return [f"{each}=" for each in dict.fromkeys(keys) if each.startswith(key)]
    known = ["true", "false"] if key == "debug" else groups().get_group_options(key)
    before, comma, last = value.rpartition(",")
    # The shell treats what follows `=` as a separate word.
    return [f"{before}{comma}{name}" for name in known if name.startswith(last)]


def main() -> None:
    """Print the line for the shell, or the completions that the shell asks for."""
    words = sys.argv[1:]
    if words[:1] == ["--words"]:
        line = os.environ.get("COMP_LINE", "")
        end = int(os.environ.get("COMP_POINT", len(line)))
        print("\n".join(candidates(line[:end])))
    elif words == ["bash"]:
        print(SCRIPT)
    else:
        print(__doc__)


if __name__ == "__main__":
    run(main)
