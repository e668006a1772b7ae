from __future__ import annotations

import json

import pytest
import torch

from cambrian.data.source import Source
from cambrian.data.split import TensorSplit
from cambrian.engine.claims import judge
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.systems.perception.relation_network import (
    Config,
    FlatMLP,
    PixelEncoder,
    QuestionOnly,
    RelationNet,
    RelationNetworkRecipe,
    StackedAttention,
    StoryEncoder,
    _show,
    objects_from_map,
)
from cambrian.systems.perception.relation_network.recipe import CLAIM

SMALL = {
    "steps": 4,
    "train": 64,
    "held_out": 32,
    "batch": 8,
    "g": (8, 8),
    "f": (8,),
    "mlp": (8,),
    "channels": (4, 4),
    "words": 8,
}


def trained(steps=2, data=None, **settings):
    config = Config(**{**SMALL, **settings})
    made = RelationNetworkRecipe(config, data=data)
    split = made.data.split("train")
    for start in range(steps):
        batch = split[torch.arange(8) + 8 * start]
        made.step(batch)
        made.iteration += 1
    made.model.eval()
    return made


def reasoners():
    sizes = {"obj_dim": 5, "q_dim": 3, "out": 4}
    return [
        RelationNet(**sizes, g=(8, 8), f=(6,)),
        RelationNet(**sizes, g=(8, 8), f=(6,), pairs="self"),
        FlatMLP(**sizes, objects=4, widths=(8,)),
        StackedAttention(**sizes, hidden=8),
        QuestionOnly(q_dim=3, out=4, widths=(8,)),
    ]


@pytest.mark.parametrize("model", reasoners(), ids=lambda m: type(m).__name__)
def test_every_reasoner_answers_one_or_many_questions_and_ignores_absent_objects(model, tmp_path):
    objects, question = torch.randn(2, 4, 5), torch.randn(2, 6, 3)
    mask = torch.tensor([[True, True, True, False]] * 2)
    out = model(objects, question, mask)
    assert out.shape == (2, 6, 4)
    assert torch.allclose(model(objects, question[:, 2], mask), out[:, 2], atol=1e-6)
    changed = objects.clone()
    changed[:, 3] = 7.0
    assert torch.equal(model(changed, question, mask), out)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(objects, question, mask), out)


def test_only_the_mlp_minds_the_order_of_objects():
    objects, question = torch.randn(2, 4, 5), torch.randn(2, 6, 3)
    turned = objects.flip(1)
    for model in reasoners():
        same = torch.allclose(model(objects, question), model(turned, question), atol=1e-5)
        assert same != isinstance(model, FlatMLP)


def test_mlp_baseline_has_at_least_as_many_parameters_as_the_relation_network():
    def size(**settings):
        made = RelationNetworkRecipe(Config(train=64, held_out=8, **settings))
        return sum(p.numel() for p in made.model.parameters())

    assert size(reasoner="mlp") >= size()
    assert size(reasoner="sum") == size(pairs="self") == size()


def test_sabotage_and_per_object_sum_are_the_same_network():
    a, b = trained(pairs="self"), trained(reasoner="sum")
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_a_relation_network_that_is_a_sum_does_not_hold():
    def rows(value):
        return [{"neighbours": value, "nonrelational": 0.99}] * 3

    assert judge(CLAIM, {"rn": rows(0.93), "mlp": rows(0.7), "sum": rows(0.77)}).verdict == "holds"
    assert judge(CLAIM, {"rn": rows(0.77), "mlp": rows(0.7), "sum": rows(0.77)}).verdict != "holds"


def test_cells_carry_x_to_the_right_and_y_down():
    features = torch.arange(6.0).view(1, 1, 2, 3)
    cells = objects_from_map(features)
    assert cells.shape == (1, 6, 3)
    assert cells[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert cells[0, :3, 1].tolist() == [-1, 0, 1] and cells[0, :, 2].tolist() == [-1, -1, -1, 1, 1, 1]
    with pytest.raises(ShapeError):
        objects_from_map(features[0])


def test_left_out_pairs_change_the_logit_by_their_relevance():
    model = RelationNet(obj_dim=5, q_dim=3, out=4, g=(8, 6), f=(7,))
    objects, question = torch.randn(2, 3, 5), torch.randn(2, 2, 3)
    length, drop = model.relevance(objects, question)
    pieces = model.g.pair_features(objects, question)
    logits = model(objects, question)
    given = int(logits[1, 0].argmax())
    without = model.f(pieces[1, 0].sum((0, 1)) - pieces[1, 0, 2, 1])
    assert torch.allclose(drop[1, 0, 2, 1], logits[1, 0, given] - without[given], atol=1e-5)
    assert torch.allclose(length[1, 0, 2, 1], pieces[1, 0, 2, 1].norm(), atol=1e-6)
    masked = model.relevance(objects, question, torch.tensor([[True, True, False]] * 2))[0]
    assert masked[:, :, 2].eq(0).all() and masked[:, :, :, 2].eq(0).all()
    with pytest.raises(ShapeError, match="pairs"):
        RelationNet(obj_dim=5, q_dim=3, out=4, g=(8,), f=(7,), pairs="self").relevance(objects, question)


def test_stories_are_read_up_to_their_last_word_and_tagged_by_distance():
    encoder = StoryEncoder(vocabulary=9, sentences=3, embedding=4, hidden=5)
    story = torch.tensor([[[1, 2, 0], [3, 0, 0], [0, 0, 0]]])
    objects, question, mask = encoder(story, torch.tensor([[[4, 5, 0]]]))
    assert mask.tolist() == [[True, True, False]] and question.shape == (1, 1, 5)
    assert objects[0, 0, 5:].tolist() == [0, 1, 0] and objects[0, 1, 5:].tolist() == [1, 0, 0]
    exact, _ = encoder.sentence(encoder.words(torch.tensor([[1, 2]])))
    assert torch.allclose(objects[0, 0, :5], exact[0, -1], atol=1e-6)
    with pytest.raises(ShapeError):
        encoder(story[:, :2], torch.tensor([[[4, 5, 0]]]))
    with pytest.raises(ShapeError):
        PixelEncoder(channels=(4,))(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("task", ["state", "pixels", "babi", "springs"])
@pytest.mark.parametrize("reasoner", ["rn", "mlp", "attention", "question"])
def test_every_task_trains_evaluates_and_shows_itself(task, reasoner):
    made = trained(task=task, reasoner=reasoner)
    figures = made.evaluate("test", torch.Generator())
    assert 0 <= figures["accuracy"] <= 1 and 0 < figures["prior"] <= 1
    with torch.no_grad():
        shown = made.sample(2, torch.Generator().manual_seed(0))
    assert len(shown.html()) > 100
    if reasoner == "rn":
        assert made.relevance(n=1).html().count("<img") >= 1
    else:
        with pytest.raises(CapabilityError, match="relevance"):
            made.relevance()


def test_counting_systems_is_a_choice_among_ten():
    made = trained(task="springs", physics="count")
    assert made.model(made.data.split("test")[torch.arange(4)]).shape == (4, 1, 10)


def test_prior_is_the_accuracy_of_each_types_most_frequent_answer():
    made = trained(train=400, held_out=200)
    train, test = made.data.split("train")[torch.arange(400)], made.data.split("test")[torch.arange(200)]
    right = 0
    for kind in range(6):
        usual = torch.bincount(train["answer"][train["kind"] == kind]).argmax()
        right += int((test["answer"][test["kind"] == kind] == usual).sum())
    assert made.evaluate("test", torch.Generator())["prior"] == pytest.approx(right / 4000)


def test_learning_rate_falls_over_the_second_half():
    made = trained(steps=0, lr=0.01)
    rates = []
    for i in range(4):
        made.step(made.data.split("train")[torch.arange(8)])
        rates.append(made.optim.param_groups[0]["lr"])
        made.iteration = i + 1
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005])


def test_scenes_of_the_splits_differ_and_training_scenes_are_functions_of_the_index():
    data = RelationNetworkRecipe.load_data(Config(**SMALL), Source("world", "sort-of-clevr"))
    index = torch.tensor([5, 2])
    first, again = data.split("train")[index], data.split("train")[index.flip(0)]
    assert torch.equal(first["objects"], again["objects"].flip(0))
    assert not torch.equal(first["objects"], data.split("test")[index]["objects"])
    assert first["question"].shape == (2, 8, 11) and data.split("test")[index]["question"].shape == (2, 20, 11)


@pytest.mark.parametrize("colour, kind, text", [
    ("red", "shape", "What shape is the red object?"), ("grey", "left", "Is the gray object on the left?"),
    ("blue", "farthest", "what shape is the object furthest from the blue one"), ("green", "count", "How many objects have the shape of the green one?"),
])  # fmt: skip
def test_english_questions_become_codes(colour, kind, text):
    code = _show.parse(text)[0, 0]
    kinds = ("shape", "left", "top", "closest", "farthest", "count")
    assert ("red", "green", "blue", "orange", "grey", "yellow")[int(code[:6].argmax())] == colour
    assert kinds[3 * int(code[6:8].argmax()) + int(code[8:].argmax())] == kind


def test_asking_answers_and_refuses_what_it_cannot_read():
    made = trained()
    assert "closest" in made.ask().html()
    with pytest.raises(ConfigError, match="cannot read"):
        made.ask("what is the meaning of the purple thing?")
    with pytest.raises(CapabilityError, match="Sort-of-CLEVR"):
        trained(task="springs").ask()


def object_file(folder, change=lambda records: records):
    records = [
        {"objects": [[i % 3, 1.0]] * (1 + i % 4), "question": [float(i % 2)], "answer": "even" if i % 2 == 0 else "odd"}
        for i in range(40)
    ]
    path = folder / "sets.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in change(records)))
    return Source("path", str(path))


def test_a_users_own_objects_and_questions_are_learnt(tmp_path):
    data = RelationNetworkRecipe.load_data(Config(**SMALL), object_file(tmp_path))
    assert isinstance(data.split("train"), TensorSplit) and len(data.split("train")) == 32
    assert data.info["answers"] == ("even", "odd")
    assert data.split("train").fields["mask"].sum(1).unique().tolist() == [1, 2, 3, 4]
    made = RelationNetworkRecipe(Config(**SMALL, lr=0.02, decay=False), data=data)
    for _ in range(60):
        made.step(data.split("train")[torch.arange(32)])
    assert made.evaluate("test", torch.Generator())["accuracy"] == 1.0
    assert "odd" in made.sample(2, torch.Generator()).html()


@pytest.mark.parametrize("change, message", [
    (lambda r: [*r[:3], "not json", *r[3:]], "line 4"),
    (lambda r: [*r, {"objects": [[1.0, 2.0, 3.0]], "question": [1.0], "answer": "odd"}], "line 41"),
    (lambda r: [*r, {"objects": [1.0], "question": [1.0], "answer": "odd"}], "rows"),
    (lambda r: [*r, {"question": [1.0], "answer": "odd"}], "objects"),
    (lambda r: r[:4], "at least 10"),
])  # fmt: skip
def test_bad_records_are_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        RelationNetworkRecipe.load_data(Config(**SMALL), object_file(tmp_path, change))


BABI = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n1 Daniel went home.\n2 Where is Daniel?\thome\t1\n"


def test_a_babi_folder_is_read(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"qa1_single-supporting-fact_{split}.txt").write_text(BABI * 8)
    data = RelationNetworkRecipe.load_data(Config(**SMALL | {"task": "babi"}), Source("path", str(tmp_path)))
    train = data.split("train").fields
    words = data.info["words"]
    assert train["story"].shape == (16, 2, 5) and data.info["kinds"] == ("task_1",)
    assert [words[i] for i in train["story"][0, 1]] == ["john", "went", "to", "the", "hallway"]
    assert [words[i] for i in train["question"][0, 0] if i] == ["where", "is", "mary", "?"]
    assert words[int(train["answer"][0])] == "bathroom" and train["story"][1, 1].eq(0).all()
    made = trained(task="babi", data=data, batch=8)
    assert "where is daniel" in made.sample(8, torch.Generator()).html()
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_text("Mary moved.\n")
    with pytest.raises(DataError, match="line 1"):
        RelationNetworkRecipe.load_data(Config(**SMALL | {"task": "babi"}), Source("path", str(tmp_path)))


@pytest.mark.parametrize("task, source, message", [
    ("babi", Source("path", "."), "no qaN"), ("pixels", Source("path", "."), "pixels"),
    ("state", Source("hub", "hub:a/b"), "reads files"), ("state", Source("world", "springs"), "set task"),
])  # fmt: skip
def test_data_that_does_not_fit_the_task_is_a_typed_error(tmp_path, monkeypatch, task, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        RelationNetworkRecipe.load_data(Config(**SMALL | {"task": task}), source)


def test_unknown_story_types_are_a_typed_error():
    with pytest.raises(DataError, match="bAbI task"):
        RelationNetworkRecipe.load_data(Config(**SMALL | {"task": "babi", "stories": (1, 2)}), Source("world", "babi"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"relational": 0, "plain": 0}, "at least one question"),
        ({"size": 16, "channels": (8,) * 5}, "vanishes"),
        ({"pairs": "self", "reasoner": "mlp"}, "lacks"),
        ({"task": "clevr"}, "must be one of"),
    ],
)
def test_bad_settings_are_typed_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings)
