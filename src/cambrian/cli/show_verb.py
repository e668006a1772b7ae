"""Show one system's card; without torch, so it answers at once."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from cambrian.cli.console import json_option, print_json
from cambrian.engine import registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """The slug."""
    parser.add_argument("slug")
    json_option(parser)


def action_signatures(card: registry.Card) -> dict[str, str]:
    """Each action's parameters as written, read with `ast`."""
    found: dict[str, str] = {}
    for path in (*card.files, *card.shared):
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in card.actions and registry.is_action(node):
                fields = ast.unparse(node.args).removeprefix("self").lstrip(", *")
                about = " ".join((ast.get_docstring(node) or "").split()).partition(". ")[0]
                found[node.name] = f"{node.name}({fields})  {about}".rstrip()
    return found


def run(args: argparse.Namespace) -> int:
    """Print the card."""
    card = registry.card(args.slug)
    signatures = action_signatures(card)
    if args.json:
        print_json(
            {**card.row(), "actions": list(card.actions), "action_signatures": signatures, "docstring": card.body}
        )
        return 0
    print(f"{card.slug}: {card.body}\n")
    print(f"roles:   {', '.join(card.roles)}")
    print(f"import:  {card.module}")
    if card.data:
        print(f"data:    {card.data} (embedded default)")
    for i, line in enumerate(signatures.values()):
        print(f"{'actions:' if not i else '        '} {line}")
    return 0
