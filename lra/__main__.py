"""The one command for everything: `lra COMMAND WORDS`, or `python -m lra COMMAND WORDS`.

WORDS are Hydra overrides, the same for every command: task=listops,text attention=softmax,mra
seed=0,1 scale=mini. Nothing heavy is imported until the command is known.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """A command of `lra`.

    Args:
        module: The module that defines its `main`.
        about: What it does, in one line.
        example: Words that work with it.
    """

    module: str
    about: str
    example: str


COMMANDS = {
    "reproduce": Command(
        "lra.reproduce",
        "Preflight, plan, train, report",
        "scale=mini attention=softmax,mra",
    ),
    "train": Command(
        "lra.train",
        "Train a cell, or a grid of them",
        "task=listops attention=softmax,mra",
    ),
    "eval": Command("lra.eval", "Test a finished run again", "task=listops scale=mini"),
    "verify": Command(
        "lra.verify", "Repeat the first updates of a record", "task=listops scale=mini"
    ),
    "plan": Command(
        "lra.plan.__main__", "Estimate what a grid will take", "task=listops,text scale=mini"
    ),
    "report": Command("lra.report.__main__", "Print and write the tables", "scale=mini"),
    "compare": Command(
        "lra.compare", "Compare two methods over their seeds", "attention=softmax,mra scale=mini"
    ),
    "submission": Command(
        "lra.submission",
        "Prepare and check results to submit",
        "check results/submissions/NAME.json",
    ),
    "status": Command("lra.status", "Show the progress of a grid's cells", "scale=mini"),
    "board": Command("lra.board", "Open the curves in TensorBoard", "scale=mini"),
    "bench": Command(
        "lra.bench.__main__",
        "Measure speed and memory",
        "attention=softmax,mra",
    ),
    "check": Command(
        "lra.check", "Check a backend against its contract", "attention=my_file:MyAttention"
    ),
    "reach": Command("lra.reach", "Measure how far a trained model looks", "--help"),
    "show": Command(
        "lra.show", "Show every value and where it comes from", "task=text attention=mra"
    ),
    "data": Command("lra.data", "Build the data sets of tasks", "task=listops scale=mini"),
    "preflight": Command("lra.preflight", "Show where the data come from", "task=text,image"),
    "new": Command("lra.new", "Write a backend of your own", "attention my_file:Mine"),
    "completion": Command("lra.completion", "Print a shell completion script", "bash"),
}
_TAIL = """
WORDS are key=value, as in Hydra, and mean the same in every command:
  task=listops,text attention=softmax,my_file:Mine seed=range(0,3) scale=mini train.steps=100
`lra COMMAND --help` says more; `lra train --help` lists every key. Shell completion:
eval "$(lra completion bash)"; `lra completion` says where to put that line."""


def listing() -> str:
    """Return the list of commands, each on one line with an example."""
    there = {name: command for name, command in COMMANDS.items() if _file(command).exists()}
    width = max(len(command.about) for command in there.values())
    lines = [
        f"  {name:<10}  {command.about:<{width}}  lra {name} {command.example}"
        for name, command in there.items()
    ]
    return "\n".join(["lra COMMAND WORDS: the Long Range Arena suite", "", *lines, _TAIL])


def _file(command: Command) -> Path:
    parts = command.module.split(".")[1:]
    return Path(__file__).parent.joinpath(*parts).with_suffix(".py")


def main() -> None:
    """Run the command that the command line names, or list all commands if it names none."""
    # Quiet exits and the spelling of characters that a terminal lacks are shared by all commands.
    from lra.terminal import run

    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        run(lambda: print(listing()))
        return
    name = words[0]
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name.partition("=")[0], COMMANDS, 1)
        hint = f"did you mean lra {close[0]}? " if close else ""
        print(f"lra {name}: no such command; {hint}`lra` lists all commands", file=sys.stderr)
        sys.exit(2)
    if name == "train" and {"-h", "--help"} & set(words):
        from lra.help import text

        run(lambda: print(text()))
        return
    if words[:2] != ["bench", "step"] and {"-h", "--help"} & set(words):
        from lra.usage import usage

        run(lambda: print(usage(_file(COMMANDS[name]))))
        return
    # Modules in the current folder can be imported, as with python -m.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.argv = [f"lra {name}", *words[1:]]
    module = importlib.import_module(COMMANDS[name].module)
    run(module.main)


if __name__ == "__main__":
    main()
