"""Writes `docs/systems/SLUG.md` for every system, and the README's table, from cards, findings and ledger."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cambrian.codec import files
from cambrian.engine import ledger, registry

BEGIN, END = "<!-- ledger: begin (written by docs/generate.py) -->", "<!-- ledger: end -->"


def effect(record: dict[str, Any]) -> str:
    """The measured effect with its margin."""
    margin = f"{record['margin']:g}" + ("x" if record["compare"] == "ratio" else "")
    sign = "<=" if record["direction"] == "lower" and record["compare"] == "ratio" else ">="
    return f"{record['effect']['text']} (margin {sign} {margin})"


def record_section(record: dict[str, Any]) -> str:
    """One ledger record as Markdown."""
    arms = [
        f"| {name} | {arm['mean']:.4g} | {arm['low']:.4g} .. {arm['high']:.4g} | {', '.join(f'{v:.4g}' for v in arm['values'])} |"
        for name, arm in record["arms"].items()
    ]
    broken = record.get("sabotage")
    lines = [
        f"### {record['claim']}: {record['verdict']}", "", record["statement"], "",
        f"- The paper: {record['paper']}",
        f"- Measured: {record['metric']} {effect(record)}",
        *[f"- Condition: {c}: {'not met' if c in record['effect']['unmet'] else 'met'}" for c in record["conditions"]],
        *([f"- Sabotaged ({broken['overrides']}): {broken['verdict']}"] if broken else []),
        f"- {record['preset']} preset, seeds {record['seeds']}, {record['data']}, {record['device']}, torch "
        f"{record['versions']['torch']}, commit {record['commit']}, {record['date']}, {record['seconds']:.0f} s",
        "", f"| arm | {record['metric']} | 95 % of the mean | seeds |", "|---|---|---|---|", *arms, "",
    ]  # fmt: skip
    return "\n".join(lines)


def system_page(slug: str, root: Path) -> str:
    """A system's page: card, commands, ledger, findings."""
    card = registry.card(slug)
    body = card.body.split("\n", 1)[1].strip()
    verb = {"recipe": f"cambrian train {slug}", "training-method": f"cambrian train vgg --with {slug}",
            "compressor": f"cambrian compress last --with {slug}", "explainer": f"cambrian explain last --with {slug}",
            "attacker": f"cambrian attack last --with {slug}", "study": f"cambrian verify {slug}"}  # fmt: skip
    commands = dict.fromkeys([*(verb[r] for r in card.roles), f"cambrian verify {slug}", f"cambrian config {slug}"])
    parts = [
        f"# {card.title} (`{slug}`)",
        "",
        "```text",
        body,
        "```",
        "",
        "## Commands",
        "",
        "```sh",
        *commands,
        "```",
        "",
    ]
    parts += [f"Roles: {', '.join(card.roles)}. Import: `{card.module}`.", ""]
    records = ledger.records(slug)
    parts += ["## Ledger", "", *(record_section(r) for r in records)] if records else []
    findings = root / "docs" / "findings" / f"{slug}.md"
    parts += [findings.read_text(encoding="utf-8")] if findings.exists() else []
    return "\n".join(parts)


def table() -> str:
    """All verdicts as a Markdown table."""
    rows = ["| system | claim | verdict | measured | the paper |", "|---|---|---|---|---|"]
    for r in ledger.records():
        statement, paper = (str(r[name]).replace("|", "\\|") for name in ("statement", "paper"))
        rows.append(f"| `{r['slug']}` | {statement} | **{r['verdict']}** | {r['metric']} {effect(r)} | {paper} |")
    return "\n".join(rows)


def family_page(family: str, root: Path) -> str | None:
    """A family's comparison: what was found, then the recorded tables and their pictures; None where nothing is recorded."""
    path = ledger.root() / "tables" / f"{family}.json"
    if not path.exists():
        return None
    record = files.load_json(path)
    text = root / "docs" / "findings" / "families" / f"{family}.md"
    parts = [text.read_text(encoding="utf-8").rstrip() if text.exists() else f"# {family}", "", "## The tables", ""]
    parts += [
        f"`cambrian verify --family {family} --table`, seeds {record['seeds']}: the mean, lowest to highest in brackets.",
        "",
    ]
    for world, table in record["tables"].items():
        budget = ", ".join(f"{name} {value}" for name, value in record["worlds"][world]["settings"].items())
        rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
        parts += [f"### {world}", "", f"{budget}.", "", *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]
        if (root / "docs" / "pictures" / f"{family}-{world}.png").exists():
            parts += [f"![samples on {world}, first seed](../pictures/{family}-{world}.png)", ""]
    settings = [
        [f"`{name}`", e["slug"], *(str({**e["settings"], **e["by_world"].get(w, {})}) for w in record["worlds"])]
        for name, e in record["entrants"].items()
    ]
    head = ["entrant", "system", *record["worlds"]]
    parts += [
        "### What each added to the budget",
        "",
        *("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *settings]),
        "",
    ]
    return "\n".join(
        [
            *parts,
            f"{record['device']}, torch {record['versions']['torch']}, commit {record['commit']}, {record['date']}.",
            "",
        ]
    )


def write_pages(root: Path) -> None:
    """Write every system's page and the index."""
    folder = root / "docs" / "systems"
    folder.mkdir(parents=True, exist_ok=True)
    cards = [card for card in registry.cards().values() if card.family != "plugin"]
    for card in cards:
        (folder / f"{card.slug}.md").write_text(system_page(card.slug, root), encoding="utf-8")
    names = [card.slug for card in cards]
    for family in sorted({card.family for card in cards}):
        page = family_page(family, root)
        if page is not None:
            (folder / f"family-{family}.md").write_text(page, encoding="utf-8")
            names.insert(0, f"family-{family}")
    listing = "\n".join(names)
    index = f"# Systems\n\n{table()}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n"
    (folder / "index.md").write_text(index, encoding="utf-8")


def readme_with_table(text: str) -> str:
    """The README with the ledger's table between its markers."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Rewrite the README's table and the pages."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    root = Path(__file__).resolve().parent.parent
    readme = root / "README.md"
    readme.write_text(readme_with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    write_pages(root)


if __name__ == "__main__":
    main()
