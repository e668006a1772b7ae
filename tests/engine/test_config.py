import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambrian.engine.config import config, describe, from_json, option, override, parse_settings, to_json
from cambrian.errors import ConfigError


@config
class Sample:
    steps: int = option(10, "iterations", low=1, high=100)
    rate: float = option(0.1, "rate", low=0.0)
    name: str = option("a", "kind", choices=("a", "bee"))
    flag: bool = option(False, "switch")
    widths: tuple[int, ...] = option((1, 2), "sizes", low=1)
    limit: float | None = option(None, "cap")

    def check(self):
        if self.flag and self.steps < 5:
            raise ConfigError("flag needs steps >= 5")


def test_defaults_are_frozen_and_described():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample().steps = 3
    rows = {row["name"]: row for row in describe(Sample)}
    assert rows["steps"]["allowed"] == ">= 1 <= 100"
    assert rows["limit"]["type"] == "float | None"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": "0"}, "steps must be at least 1, not 0"),
        ({"steps": "many"}, "steps must be int, not 'many'"),
        ({"stps": "3"}, "did you mean steps?"),
        ({"name": "be"}, "did you mean bee?"),
        ({"rate": "nan"}, "rate must be a number"),
        ({"widths": "3,0"}, "widths must be at least 1"),
        ({"flag": "maybe"}, "flag must be bool"),
        ({"flag": "yes", "steps": "2"}, "flag needs steps >= 5"),
        ({"rate": "1/0"}, "rate must be float"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ConfigError, match="^[^\n]+$") as caught:
        override(Sample(), settings)
    assert message in str(caught.value)


def test_text_is_read_by_type():
    made = override(Sample(), {"rate": "8/255", "widths": "(3;4)", "limit": "2", "flag": "on", "name": "bee"})
    assert made == Sample(rate=8 / 255, widths=(3, 4), limit=2.0, flag=True, name="bee")
    assert override(made, {"limit": "none"}).limit is None


@given(
    st.integers(1, 100),
    st.floats(0, 1e6),
    st.booleans(),
    st.lists(st.integers(1, 9), max_size=4),
    st.none() | st.floats(-5, 5),
)
def test_json_round_trip(steps, rate, flag, widths, limit):
    made = Sample(steps=max(steps, 5), rate=rate, flag=flag, widths=tuple(widths), limit=limit)
    assert from_json(Sample, json.loads(json.dumps(to_json(made)))) == made


def test_unknown_or_mistyped_json_is_refused():
    with pytest.raises(ConfigError):
        from_json(Sample, {"target": "os.system"})
    with pytest.raises(ConfigError):
        from_json(Sample, {"steps": {"_target_": "os.system"}})


def test_settings_need_an_equals_sign():
    assert parse_settings(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(ConfigError, match="name=value"):
        parse_settings(["steps"])


def test_fields_must_be_documented():
    with pytest.raises(TypeError, match="option"):

        @config
        class Bad:
            steps: int = 3
