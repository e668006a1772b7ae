"""The command line: teaching, speed, exit codes, JSON everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cambrian.cli.main import VERBS, main


def test_help_teaches(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS) and "cambrian verify unrolled-gan" in text
    assert main([]) == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert len(capsys.readouterr().out) > 100


def test_list_and_show_are_fast_and_import_no_torch():
    code = (
        "import sys, resource; from cambrian.cli.main import main; "
        "assert main(['list']) == 0 and main(['show', 'unrolled-gan']) == 0; "
        "assert not {'torch', 'numpy'} & set(sys.modules); u = resource.getrusage(resource.RUSAGE_SELF); "
        "print(u.ru_utime + u.ru_stime, file=sys.stderr)"
    )
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(float(done.stderr))
    assert min(times) < 0.9, times  # both verbs together, CPU time of the whole process


def test_module_and_console_script_are_the_same():
    script = os.path.join(os.path.dirname(sys.executable), "cambrian")
    a = subprocess.run([script, "list", "--json"], capture_output=True, text=True)
    b = subprocess.run([sys.executable, "-m", "cambrian", "list", "--json"], capture_output=True, text=True)
    assert a.returncode == b.returncode == 0 and a.stdout == b.stdout and json.loads(a.stdout)


def test_importing_the_package_is_cheap():
    code = "import sys, cambrian; assert 'torch' not in sys.modules; assert cambrian.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["shwo"], 2, "did you mean show?"),
        (["show", "unroled-gan"], 1, "did you mean unrolled-gan?"),
        (["train"], 2, "the following arguments are required"),
        (["train", "toy", "--set", "stepz=3"], 1, "did you mean steps?"),
        (["train", "toy", "--set", "steps=-3"], 1, "steps must be at least 0"),
        (["train", "toy", "--set", "steps"], 1, "name=value"),
        (["evaluate", "nothing"], 1, "no run 'nothing'"),
        (["data", "no/such/file"], 1, "no file or folder"),
        (["verify", "eve2"], 1, "unknown system 'eve2'"),
        (["compress", "last", "--with", "nothing"], 1, "no run 'last'"),
    ],
)
def test_mistakes_exit_cleanly(toy, words, code, message, capsys):
    assert main(words) == code
    text = capsys.readouterr().err
    assert message in text and "Traceback" not in text


def test_debug_shows_the_traceback(toy):
    from cambrian.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["--debug", "show", "nothing"])


def test_a_session_from_training_to_report(toy, runs, tmp_path, capsys):
    def json_of(*words):
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    made = json_of("train", "toy", "--preset", "smoke", "--set", "hidden=8", "--seed", "2")
    assert made["status"] == "done" and made["figures"]["mse"] > 0
    assert json_of("evaluate", "last")["figures"] == pytest.approx(made["figures"])
    assert json_of("runs")[0]["run"] == made["run"]
    assert json_of("config", "toy")["recipe"][0]["name"] == "steps"
    assert json_of("show", "toy")["actions"] == ["predict"]
    assert os.path.exists(json_of("sample", made["run"], "-n", "3", "--out", str(tmp_path))["files"][0])
    assert main(["do", "last", "predict", "--a", "0.5", "--times", "2", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "predict.txt").read_text().count("\n") == 2
    capsys.readouterr()
    assert main(["do", "last", "predict", "--b", "1"]) == 1
    assert "unknown field '--b'" in capsys.readouterr().err
    page = json_of("report", "last")["report"]
    assert "data:image/png;base64" in Path(page).read_text()
    assert json_of("resume", "last")["status"] == "done"


def test_a_folder_that_cannot_be_written(toy, capsys):
    assert main(["train", "toy", "--preset", "smoke", "--set", "steps=1"]) == 0
    assert main(["sample", "last", "--out", "/proc/nowhere"]) == 1
    assert "cannot write to /proc/nowhere" in capsys.readouterr().err
