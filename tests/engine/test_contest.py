"""A family's comparison: same budget for all entrants, cached arms, one table, one page, one record."""

import json

import pytest
from PIL import Image

from cambrian.cli.main import main
from cambrian.engine import contest, ledger, registry
from cambrian.engine.contest import Contest, Entrant, World
from cambrian.errors import ConfigError


@pytest.fixture
def small(monkeypatch):
    """Two entrants, one of them with a method, on one world for a moment."""
    settings = {"hidden": 8, "latent": 4, "look": 10, "looked_at": 64}
    world = World("ring8", {"steps": 6, "batch": 8}, ("modes_touched", "quality"))
    made = Contest(
        "gans", (world,),
        (Entrant("plain", "unrolled-gan", {**settings, "unroll": 0}),
         Entrant("noisy", "unrolled-gan", settings, {"ring8": {"unroll": 1}}, ("gradient-noise",))),
        seeds=(0, 1),
    )  # fmt: skip
    monkeypatch.setattr(contest, "of_family", lambda family: made)
    return made


def test_every_entrant_gets_the_budget_and_its_own_settings(small, runs):
    outcome = contest.run(small)
    jobs = [json.loads(path.read_text()) for path in runs.glob(".arms/*/job.json")]
    assert len(jobs) == 4 and all(job["config"]["steps"] == 6 and job["data"] == "ring8" for job in jobs)
    assert {(job["config"]["unroll"], tuple(job["with"])) for job in jobs} == {(0, ()), (1, ("gradient-noise",))}
    table = outcome.table(small.worlds[0])
    assert table.columns == ["ring8", "modes touched", "quality", "ms per step"]
    assert [row[0] for row in table.rows] == ["plain", "noisy"] and all(".." in cell for cell in table.rows[0][1:])
    speeds = [rows[contest.SPEED] for rows in outcome.metrics["plain"]["ring8"]]
    assert len(speeds) == 2 and min(speeds) > 0


def test_finished_arms_are_not_trained_again(small, runs):
    contest.run(small, entrants=["plain"])
    before = {path: path.stat().st_mtime_ns for path in runs.glob(".arms/*/result.json")}
    assert len(before) == 2
    contest.run(small)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_command_prints_pages_and_records(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAMBRIAN_LEDGER", str(tmp_path / "ledger"))
    page = tmp_path / "page.html"
    words = ["verify", "--family", "gans", "--table", "--seeds", "0", "--record", "--report", str(page)]
    assert main([*words, "--pictures", str(tmp_path / "pictures")]) == 0
    with Image.open(tmp_path / "pictures" / "gans-ring8.png") as sheet:
        assert sheet.width == 600 and sheet.height > 200
    assert "modes touched" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("data:image/png;base64") == 2 and "noisy" in text
    stored = json.loads((tmp_path / "ledger" / "tables" / "gans.json").read_text())
    assert stored["seeds"] == [0] and set(stored["metrics"]) == {"plain", "noisy"}
    assert stored["tables"]["ring8"]["rows"][0][0] == "plain"
    assert ledger.records() == []  # no claim, no verdict


def test_mistakes_are_named(small, capsys):
    with pytest.raises(ConfigError, match="none of vgg takes part; entrants: plain, noisy"):
        contest.run(small, entrants=["vgg"])
    assert main(["verify", "--table"]) == 1 and "name it" in capsys.readouterr().err
    assert main(["verify"]) == 1 and "name a system" in capsys.readouterr().err
    assert main(["verify", "--family", "gand"]) == 1 and "no family 'gand'" in capsys.readouterr().err


def test_families_without_a_comparison_say_so():
    with pytest.raises(ConfigError, match="the family optim declares no comparison"):
        contest.of_family("optim")
    with pytest.raises(ConfigError, match="no family 'gnas'"):
        contest.of_family("gnas")


def test_the_declared_comparisons_fit_their_systems():
    for family in sorted({card.family for card in registry.cards().values()}):
        if not (registry.SYSTEMS / family / "_contest.py").is_file():
            continue
        declared = contest.of_family(family)
        assert len({e.name for e in declared.entrants}) == len(declared.entrants)
        for entrant in declared.entrants:
            assert set(entrant.by_world) <= {world.name for world in declared.worlds}
            for world in declared.worlds:
                job = contest._job(entrant, world, 0)  # raises ConfigError for a setting that does not exist
                assert job.payload["config"]["steps"] == world.settings["steps"]
