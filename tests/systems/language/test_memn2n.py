"""Oracles of memn2n: the equations written out, tying, encodings, ages, linear start and stacking."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cambrian.data.random import sample_keys
from cambrian.engine.loop import Loop
from cambrian.errors import ConfigError, ShapeError
from cambrian.systems.language.memn2n import MemN2N, MemN2NLM
from cambrian.systems.language.memn2n import model as parts
from cambrian.systems.language.memn2n.recipe import Config, MemN2NRecipe


def words(seed: int = 0, batch: int = 4, sentences: int = 6, width: int = 5, vocab: int = 12) -> tuple[Tensor, Tensor]:
    """Stories and queries with sentences of 1 to J words, and padding in all stories but the first."""
    g = torch.Generator().manual_seed(seed)
    story = torch.randint(1, vocab, (batch, sentences, width), generator=g)
    length = torch.randint(1, width + 1, (batch, sentences), generator=g)
    story[torch.arange(width) >= length[..., None]] = 0
    for b in range(1, batch):
        story[b, sentences - b :] = 0
    return story, torch.randint(1, vocab, (batch, 3), generator=g)


def sentence(model: MemN2N, table: Tensor, row: list[int]) -> Tensor:
    """The encoding of one sentence, word by word, by the closed form."""
    row = [w for w in row if w]
    out = torch.zeros(model.d)
    for j, w in enumerate(row, 1):
        for k in range(1, model.d + 1):
            share = j / len(row)
            weight = 1.0 if model.encoding == "bow" else (1 - share) - (k / model.d) * (1 - 2 * share)
            out[k - 1] += weight * table[w, k - 1].detach()
    return out


def by_hand(model: MemN2N, story: Tensor, query: Tensor, linear: bool = False) -> Tensor:
    """Logits [V] of one story, from the equations alone."""
    rows = [r for r in story.tolist() if any(r)]
    u = sentence(model, model.table("B"), query.tolist())
    for hop in range(model.hops):
        m = [sentence(model, model.table("A", hop), r) for r in rows]
        c = [sentence(model, model.table("C", hop), r) for r in rows]
        if model.temporal:
            m = [v + model.clock("A", hop)[len(rows) - 1 - i].detach() for i, v in enumerate(m)]
            c = [v + model.clock("C", hop)[len(rows) - 1 - i].detach() for i, v in enumerate(c)]
        scores = [float(u @ v) for v in m]
        total = sum(map(math.exp, scores))
        p = scores if linear else [math.exp(s) / total for s in scores]
        o = sum((a * v for a, v in zip(p, c, strict=True)), torch.zeros(model.d))
        u = o + (u if model.H is None else model.H.detach() @ u)
    return model.table("W").detach() @ u


@pytest.mark.parametrize("tying", parts.TYINGS)
@pytest.mark.parametrize("encoding", parts.ENCODINGS)
@pytest.mark.parametrize(("hops", "temporal", "linear"), [(1, False, False), (3, True, False), (2, True, True)])
def test_network_equals_the_equations(tying: str, encoding: str, hops: int, temporal: bool, linear: bool) -> None:
    torch.manual_seed(1)
    model = MemN2N(vocab=12, d=5, hops=hops, memory=8, tying=tying, encoding=encoding, temporal=temporal, deviation=0.6)
    story, query = words()
    logits, attention = model(story, query, linear=linear)
    for b in range(len(story)):
        torch.testing.assert_close(logits[b, 1:], by_hand(model, story[b], query[b], linear)[1:], rtol=1e-4, atol=1e-5)
    assert attention.shape == (hops, 4, 6)
    if not linear:
        torch.testing.assert_close(attention.sum(-1), torch.ones(hops, 4))
    assert not attention[:, (story == 0).all(-1)].any(), "padding is not read"


@pytest.mark.parametrize("tying", parts.TYINGS)
def test_different_sentences_once_equals_all_sentences(tying: str) -> None:
    torch.manual_seed(2)
    model = MemN2N(vocab=12, d=6, memory=8, tying=tying, deviation=0.5)
    story, query = words(3)
    story[0, 4] = story[0, 1]  # a sentence said twice
    table, number = torch.unique(story.flatten(0, 1), dim=0, return_inverse=True)
    age, asked = parts.ages(story), parts.word_features(query, 12, "position")
    logits, attention = model.answer_from(
        parts.word_features(table, 12, "position"), number.view(age.shape), age, asked, torch.tensor(False)
    )
    for found, expected in zip((logits, attention), model(story, query), strict=True):
        torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(x.logsumexp(1).sum(), list(model.parameters())) for x in (logits, model(story, query)[0])
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(not table.grad or not table.grad[0].any() for table in model.tables), "the null word stays"


def test_tying_shares_the_very_parameters() -> None:
    adjacent, layerwise = (MemN2N(vocab=9, tying=t) for t in parts.TYINGS)
    for hop in range(2):
        assert adjacent.table("A", hop + 1) is adjacent.table("C", hop)
        assert adjacent.clock("A", hop + 1) is adjacent.clock("C", hop)
        assert layerwise.table("A", hop + 1) is layerwise.table("A", hop) and layerwise.table(
            "C", hop
        ) is layerwise.table("C", 2)
    assert adjacent.table("B") is adjacent.table("A", 0) and adjacent.table("W") is adjacent.table("C", 2)
    assert layerwise.table("B") is not layerwise.table("A") and adjacent.H is None and layerwise.H is not None


def test_shuffling_sentences_with_their_ages_changes_nothing() -> None:
    torch.manual_seed(3)
    model = MemN2N(vocab=12, memory=8, deviation=0.5)
    story, query = words(5)
    order = torch.randperm(6)
    shuffled, _ = model(story[:, order], query, age=parts.ages(story)[:, order])
    torch.testing.assert_close(shuffled, model(story, query)[0])
    assert not torch.allclose(model(story[:, order], query)[0][0], model(story, query)[0][0], atol=1e-4)


def test_ages_count_from_the_question() -> None:
    story = torch.tensor([[[3], [4], [5]], [[3], [4], [0]]])
    assert parts.ages(story).tolist() == [[2, 1, 0], [1, 0, -1]]


def test_noise_inserts_empty_memories_that_are_read() -> None:
    story = torch.tensor([[[3], [4], [5], [0]]])
    moved, age = parts.with_gaps(story, torch.tensor([[False, True, True, True]]), 9)
    assert moved[0, :, 0].tolist() == [5, 0, 4, 0, 3] and age.tolist() == [[0, 1, 2, 3, 4]]
    cut, age = parts.with_gaps(story, torch.tensor([[False, True, True, True]]), 3)
    assert cut[0, :, 0].tolist() == [5, 0, 4] and age.tolist() == [[0, 1, 2]]
    same, age = parts.with_gaps(story, torch.zeros(1, 4, dtype=torch.bool), 9)
    model = MemN2N(vocab=9, memory=9, deviation=0.5)
    query = torch.tensor([[2]])
    torch.testing.assert_close(model(same, query, age=age)[0], model(story, query)[0])
    _, attention = model(moved, query, age=torch.arange(5)[None])
    assert (attention > 0).all()


def test_hops_that_start_at_the_question_ignore_earlier_hops() -> None:
    torch.manual_seed(4)
    model = MemN2N(vocab=12, hops=2, carry=False, deviation=0.5)
    story, query = words(6)
    before = model(story, query)[0]
    with torch.no_grad():
        model.table("A", 0).mul_(1.0)  # B is the same table, so the first memory is disturbed through its clock
        model.clock("A", 0).add_(1.0)
    torch.testing.assert_close(model(story, query)[0], before)


def test_language_model_equals_its_equations() -> None:
    torch.manual_seed(5)
    model = MemN2NLM(vocab=11, d=6, hops=2, memory=4, deviation=0.5)
    tokens = torch.randint(0, 11, (2, 7))
    logits, attention = model(tokens)
    assert logits.shape == (2, 4, 11) and attention.shape == (2, 2, 4, 4)
    a, c = model.words.detach().chunk(2, 1)
    ta, tc = model.clocks.detach().chunk(2, 1)
    for t in range(4):
        u = torch.full((6,), 0.1)
        for _ in range(2):
            p = ((a[tokens[1, t : t + 4]] + ta) @ u).softmax(0)
            u = p @ (c[tokens[1, t : t + 4]] + tc) + model.H.detach() @ u
            u[3:] = u[3:].relu()
        torch.testing.assert_close(logits[1, t], model.W.detach() @ u, rtol=1e-4, atol=1e-5)


def small(**settings: object) -> Config:
    base = dict(steps=6, batch=8, tasks=(1, 15), restarts=2, stories=60, held_out=30, linear_start=0, noise=0.0)
    return Config(**{**base, **settings})


def test_a_stack_trains_as_its_models_one_by_one() -> None:
    loop = Loop(MemN2NRecipe(small(), seed=3))
    alone = [loop.recipe.net.member(i) for i in range(4)]
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in alone]
    for step in range(5):
        batch = loop.batch(step)
        for i, (model, optimiser) in enumerate(zip(alone, optimisers, strict=True)):
            logits, _ = model(batch["story"][:, i // 2].long(), batch["query"][:, i // 2].long())
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, batch["answer"][:, i // 2], reduction="sum").backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 40.0)
            optimiser.step()
        loop.advance()
    for i, model in enumerate(alone):
        for ours, theirs in zip(loop.recipe.net.member(i).parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_restart_of_lowest_training_loss_answers() -> None:
    recipe = MemN2NRecipe(small(), seed=3)
    with torch.no_grad():
        found = recipe._pass("train")["loss"].view(2, 2)
    with torch.no_grad():
        assert recipe.chosen() == [int(found[0].argmin()), 2 + int(found[1].argmin())]


def test_linear_start_ends_for_each_model_when_validation_stops_falling() -> None:
    recipe = MemN2NRecipe(small(linear_start=5), seed=3)
    assert recipe.extra["linear"].all()
    recipe.extra["best"] = torch.tensor([0.0, float("inf"), float("inf"), 0.0])
    recipe._end_of_epoch(1)
    assert recipe.extra["linear"].tolist() == [False, True, True, False]
    recipe._end_of_epoch(5)
    assert not recipe.extra["linear"].any()


@pytest.mark.parametrize(
    ("stories", "query"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3).long()),
        (torch.zeros(2, 3, 4).long(), torch.zeros(3, 4).long()),
        (torch.full((2, 3, 4), 12), torch.zeros(2, 4).long()),
        (torch.full((2, 3, 4), float("nan")), torch.zeros(2, 4).long()),
    ],
)
def test_wrong_inputs_are_shape_errors(stories: Tensor, query: Tensor) -> None:
    with pytest.raises(ShapeError):
        MemN2N(vocab=12)(stories, query)


def test_wrong_settings_are_typed_errors() -> None:
    for settings in ({"tying": "none"}, {"encoding": "lstm"}, {"hops": 0}):
        with pytest.raises(ConfigError):
            MemN2N(vocab=12, **settings)
    for tokens in (torch.zeros(2, 3).long(), torch.full((2, 60), 12), torch.zeros(2, 60)):
        with pytest.raises(ShapeError):
            MemN2NLM(vocab=12, memory=50)(tokens)
    with pytest.raises(ConfigError, match="1 to 20"):
        MemN2NRecipe(small(tasks=(21,)))


def test_saved_models_answer_alike(tmp_path) -> None:
    model = MemN2N(vocab=12, tying="layerwise")
    model.save_pretrained(tmp_path)
    story, query = words()
    torch.testing.assert_close(MemN2N.from_pretrained(tmp_path)(story, query)[0], model(story, query)[0])


def test_keys_decide_the_noise() -> None:
    recipe = MemN2NRecipe(small(noise=0.5), seed=3)
    batch = {**recipe.data.train[torch.arange(8)], "key": sample_keys(0, 0, torch.arange(8))}
    again = MemN2NRecipe(small(noise=0.5), seed=3)
    assert float(recipe.step(batch)["loss"]) == float(again.step(batch)["loss"])


def test_models_without_carry_train() -> None:
    loop = Loop(MemN2NRecipe(small(carry=False), seed=3))
    assert all(math.isfinite(loop.advance()["loss"]) for _ in range(3))
