"""What the documents say is true: the README's table, the page on adding a system, docstring examples."""

import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest

from cambrian.engine import registry
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.run import spec_for

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = [p for p in sorted((ROOT / "src" / "cambrian").rglob("*.py")) if re.search(r"^\s*>>> ", p.read_text(), re.M)]


def test_the_readmes_table_is_the_ledger(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    generate = importlib.import_module("generate")
    text = (ROOT / "README.md").read_text()
    assert generate.readme_with_table(text) == text, "run: python docs/generate.py"


def test_every_command_of_the_readme_names_real_verbs_and_systems():
    from cambrian.cli.main import VERBS

    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "findings").glob("*.md")]:
        for verb, rest in re.findall(r"^(?:\S+=\S+ )*cambrian (\S+)(.*)$", page.read_text(), re.M):
            assert verb in VERBS, f"{page.name}: {verb}"
            if (
                verb in ("train", "show", "config", "verify")
                and rest.split()
                and not rest.split()[0].startswith("-")
                and rest.split()[0] not in ("tiny-net", "SLUG")
            ):
                assert rest.split()[0] in registry.cards(), f"{page.name}: {rest}"


def test_the_page_on_adding_a_system_works(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "adding-a-system.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    (tmp_path / "tiny_net.py").write_text(code)
    info = tmp_path / "tiny_net-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-net\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cambrian.systems]\ntiny-net = tiny_net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.cards.cache_clear()
    try:
        card = registry.card("tiny-net")
        assert card.roles == ("recipe",) and card.claim.startswith("a hidden layer")
        spec, config = spec_for("tiny-net", preset="smoke")
        loop = Loop(spec.make(config=config))
        before = evaluate(loop.recipe)["accuracy"]
        for _ in range(config.steps):
            loop.advance()
        assert evaluate(loop.recipe)["accuracy"] > max(before, 0.5)
        with inference(loop.recipe, 0), pytest.raises(Exception, match="does not generate"):
            loop.recipe.sample(1, None)
    finally:
        registry.cards.cache_clear()
        sys.modules.pop("tiny_net", None)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_docstring_examples_run(path):
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    failed, tried = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert tried and not failed
