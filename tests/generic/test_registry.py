"""Every system has what every system must have."""

import ast
import re
from pathlib import Path

import pytest

from cambrian.engine import registry
from cambrian.engine.config import describe
from cambrian.engine.recipe import config_type
from cambrian.engine.verify import resolve_arms

ROOT = Path(__file__).resolve().parents[2]
SLUGS = sorted(slug for slug, card in registry.cards().items() if card.family != "plugin")
WITH_PRESETS = [(s, r) for s in SLUGS for r in ("recipe", "study") if r in registry.card(s).roles]
CLAIMS = [s for s in SLUGS if {"recipe", "study"} & set(registry.card(s).roles)]


def test_the_systems_are_here():
    assert {
        "infogan", "ebgan", "vgan-ebm", "mode-gan", "gap", "dfm", "ali", "bigan", "principled-gan", "vae-gan",
        "gan", "unrolled-gan", "sketch-rnn", "relation-network", "vgg", "baselines", "eve", "gradient-noise", "inq",
        "linear-probes", "fgsm", "efficient-bptt", "paleo", "sync-sgd-backup", "recurrent", "wavenet", "pixelcnn-pp",
        "conv-draw", "srnn", "vae", "neural-transducer", "memn2n", "ptr-net", "resnet", "deep-compression",
        "taylor-pruning", "quantization-limit", "guided-sparsity", "saliency", "occlusion", "prediction-difference",
        "neuron-selectivity", "feature-visualisation", "physical-adversarial", "blackbox", "transferable-attacks",
    } <= set(SLUGS)  # fmt: skip


@pytest.mark.parametrize("slug", SLUGS)
def test_card_is_complete(slug):
    card = registry.card(slug)
    assert card.title and card.roles
    assert re.search(r"(19|20)\d\d", card.reference), "the reference names a year"
    assert len(card.summary) > 60 and len(card.claim) > 20
    assert "Differs from the paper" in card.body


@pytest.mark.parametrize(("slug", "role"), WITH_PRESETS)
def test_presets_build_and_every_field_is_documented(slug, role):
    cls = registry.load(slug, role)
    assert set(cls.presets) == {"smoke", "laptop", "paper"}
    for preset in cls.presets.values():
        assert isinstance(preset, config_type(cls))
    assert all(len(row["help"]) > 3 for row in describe(config_type(cls)))


@pytest.mark.parametrize("slug", CLAIMS)
def test_claim_is_whole(slug):
    holder = registry.claim_holder(slug)
    names = [claim.name for claim in holder.claims]
    assert len(set(names)) == len(names)
    for claim in holder.claims:
        arms = resolve_arms(holder, claim, claim.preset)
        system = arms[claim.system]
        assert arms["sabotage"] != system, "the sabotage changes nothing"
        assert len(claim.seeds) >= 3 and claim.margin >= 0 and len(claim.paper) > 10


@pytest.mark.parametrize("slug", SLUGS)
def test_system_has_findings_benchmark_and_tests(slug):
    name = slug.replace("-", "_")
    assert (ROOT / "docs" / "findings" / f"{slug}.md").read_text().startswith("## Findings")
    assert (ROOT / "benchmarks" / f"{name}.py").exists()
    tests = [p for p in (ROOT / "tests" / "systems").rglob("test_*.py") if name in p.stem]
    assert tests
    for path in tests:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                text = ast.unparse(node)
                assert re.search(r"assert|raises|check_|gradcheck", text), f"{path.name}:{node.name} asserts nothing"


@pytest.mark.parametrize("slug", SLUGS)
def test_ledger_record_is_current(slug):
    from cambrian.engine import ledger

    found = {r["claim"]: r for r in ledger.records(slug)}
    if slug not in CLAIMS:
        return
    headline = registry.claim_holder(slug).claims[0]
    assert headline.name in found, f"run: cambrian verify {slug} --sabotage --record"
    for record in found.values():
        assert not ledger.stale(record), f"the record of {slug}/{record['claim']} is stale: verify again"
        assert record["preset"] == "laptop" and record["sabotage"]["verdict"] != "holds"
