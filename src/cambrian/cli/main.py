"""The `cambrian` command: picks the verb's module, and turns errors into one sentence and an exit code.

Exit codes: 0 done, 1 a user's mistake, 2 usage, 3 `verify --strict` with a verdict other than `holds`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from cambrian.errors import CambrianError

VERBS = {
    "list": "the systems, with filters",
    "show": "one system: what it does, its claim, roles and actions",
    "config": "every configuration field of a system, with its help",
    "data": "what a file or folder of data holds (dry run)",
    "train": "train a system on its embedded data or on yours",
    "resume": "carry a stopped run on, exactly as if it had not stopped",
    "runs": "the runs under ./runs (or $CAMBRIAN_RUNS)",
    "evaluate": "figures of a trained run",
    "sample": "samples of a trained run",
    "do": "an action of a trained run: interpolate, complete, encode ...",
    "verify": "try a paper's claim against its baseline",
    "compress": "make a trained model smaller",
    "explain": "show why a trained model answers as it does",
    "attack": "make inputs that a trained model gets wrong",
    "matrix": "all three of these on one run, every method, as tables",
    "profile": "operations, bytes and time of a system or run",
    "report": "one self-contained HTML page for a run",
    "ledger": "all recorded verdicts",
}

_EXAMPLES = """\
start here:
  cambrian list                                   all systems
  cambrian verify unrolled-gan                    is the paper right? both arms, several seeds, a verdict
  cambrian train sketch-rnn --preset smoke        a short training; then: cambrian sample last
  cambrian train vgg --data FOLDER_OF_IMAGES      on your own data
  cambrian train vgg --with eve                   any training method on any recipe
  cambrian compress last --with inq:bits=4        a verb on the run you just trained
  cambrian attack net.py:build --weights w.safetensors --data FOLDER --with fgsm      on a network of your own

'cambrian VERB --help' explains a verb. A run is named by id, unique prefix, path, or 'last'.
"""


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {text}" for name, text in VERBS.items())
    usage = "usage: cambrian [--debug] [--version] VERB ...\n"
    return f"{usage}\nThe deep-learning systems of 2014-2017, running again.\n\nverbs:\n{verbs}\n\n{_EXAMPLES}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or bool(os.environ.get("CAMBRIAN_DEBUG"))
    words = [w for w in words if w != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        from cambrian import __version__

        print(f"cambrian {__version__}")
        return 0
    return _guarded(words[0], words[1:], debug)


def _guarded(verb: str, words: list[str], debug: bool) -> int:
    if verb not in VERBS:
        from cambrian.engine.config import nearest

        print(f"cambrian: unknown verb {verb!r}{nearest(verb, list(VERBS))}; see 'cambrian --help'", file=sys.stderr)
        return 2
    module = importlib.import_module(f"cambrian.cli.{verb}_verb")
    parser = argparse.ArgumentParser(prog=f"cambrian {verb}", description=module.__doc__)
    module.arguments(parser)
    try:
        return int(module.run(parser.parse_args(words)) or 0)
    except SystemExit as stop:
        return int(stop.code or 0)
    except (CambrianError, BrokenPipeError, KeyboardInterrupt, OSError) as error:
        if debug:
            raise
        return _explain(error)


def _explain(error: BaseException) -> int:
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 1
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"cambrian: {text}", file=sys.stderr)
    return 1
