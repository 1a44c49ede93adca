"""The table of horizons: tau against scipy's, its interval, gains and ranks; measures of a fork against the engine's own steps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kendalltau

from analysis import foresight, horizon
from benchmarks import horizon as command
from meltr_ray.errors import ConfigError
from tests.engine_toy import toy, toy_batch, toy_config
from tests.ranks import on_ranks
from tests.reference import flat
from tests.test_screening import write_screening
from workloads import cli


def test_tau_is_scipys():
    generator = np.random.default_rng(0)
    for n in (2, 4, 9):
        x, y = generator.integers(0, 6, (50, n)), generator.normal(size=(50, n)).round(1)  # with ties
        expected = [kendalltau(a, b).statistic for a, b in zip(x, y)]
        assert np.allclose(horizon.kendall(x, y), expected, equal_nan=True)
    assert np.isnan(horizon.kendall(np.ones(3), np.arange(3)))


def test_the_interval_is_that_of_resampled_seeds():
    generator = np.random.default_rng(1)
    gains, effects = generator.normal(size=(3, 5)) + np.arange(5), generator.normal(size=(6, 5)) + np.arange(5)
    found, draws = horizon.tau(gains, effects), np.random.default_rng(2)
    by_hand = [
        kendalltau(gains[draws.integers(3, size=3)].mean(0), effects[draws.integers(6, size=6)].mean(0)).statistic for _ in range(4000)
    ]
    assert found.value == pytest.approx(kendalltau(gains.mean(0), effects.mean(0)).statistic)
    assert np.allclose([found.low, found.high], np.quantile(by_hand, [0.025, 0.975]), atol=0.201)  # tau of five moves by 0.2
    sure = horizon.tau(np.tile(np.arange(5.0), (3, 1)), np.tile(np.arange(5.0), (6, 1)))
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)


def rows_of(gains: dict[str, list[float]], base: str = "beside", measure: str = "ahead_3") -> pd.DataFrame:
    """`gains`: loss -> of each seed."""
    return pd.DataFrame([{"seed": seed, "base": base, "step": 20, "measure": measure, "loss": loss, "gain": gain}
                         for loss, of_seeds in gains.items() for seed, gain in enumerate(of_seeds)])  # fmt: skip


def test_gains_signs_ranks_and_agreement_with_a_screening(tmp_path):
    """Whose effects are a +4, b 0, c -3, shuffled -8."""
    right = {"a": [3.0, 2.0], "b": [0.1, 0.1], "c": [-1.0, -2.0], "shuffled": [-3.0, -4.0]}
    wrong = {loss: [-gain for gain in gains] for loss, gains in right.items()} | {"b": [0.4, -0.1]}
    rows = pd.concat([rows_of(right), rows_of(wrong, measure="identity"), rows_of({"a": [1.0, 1.0], "unknown": [0.0, 0.0]}, "in_full")])
    losses = horizon.by_loss(rows)
    losses = losses[losses.base == "beside"].set_index(["measure", "loss"])
    assert losses["rank"]["ahead_3"].loc[["a", "b", "c", "shuffled"]].tolist() == [1, 2, 3, 4]
    assert losses.loc[("identity", "b"), ["sign", "alike"]].tolist() == [1, 0.5] and losses.loc[("identity", "a"), "sign"] == -1
    effects = horizon.final_effects(write_screening(tmp_path))
    assert effects["beside"].mean().to_numpy() == pytest.approx([4, 0, -3, -8], abs=0.5) and len(effects["in_full"]) == 6
    measures = horizon.by_measure(rows, effects).set_index("measure")
    assert len(measures) == 2  # one loss in common is no ranking
    assert measures.tau["ahead_3"] == 1 and measures.low["ahead_3"] == 1 and measures.right["ahead_3"] >= 3
    assert measures.tau["identity"] < -0.6 and measures.right["identity"] <= 1
    text = horizon.markdown(horizon.by_loss(rows), measures.reset_index(), effects)
    assert "| beside | 20 | ahead_3 | +2.5 (1; 100%) |" in text and "1.00 [1.00, 1.00]" in text and "final effect" in text
    assert len({line.count("|") for line in text.strip().splitlines()}) == 1


def test_over_places_tau_is_the_mean_of_scipys_and_signs_count_where_an_effect_is_sure():
    generator = np.random.default_rng(5)
    effects = {"beside": pd.DataFrame({"a": [4.0, 5.0, 4.5], "b": [-0.5, 0.5, 0.1], "c": [-3.0, -2.0, -2.5]})}
    effects["in_full"] = -effects["beside"]
    places = [(base, {loss: list(generator.normal(size=3)) for loss in "abc"}) for base in ("beside", "in_full")]
    rows = pd.concat([rows_of(gains, base, measure) for base, gains in places for measure in ("identity", "ahead_3")])
    rows.loc[rows.measure == "ahead_3", "gain"] = [
        effects[base][loss].mean() for base, loss in rows[["base", "loss"]][rows.measure == "ahead_3"].to_numpy()
    ]
    found = horizon.over_places(rows, effects).set_index("measure")
    by_hand = [kendalltau([np.mean(gains[loss]) for loss in "abc"], effects[base].mean()).statistic for base, gains in places]
    assert (
        found.tau["identity"] == pytest.approx(np.mean(by_hand))
        and found.low["identity"] <= found.tau["identity"] <= found.high["identity"]
    )
    signs = [np.sign(np.mean(gains[loss])) == np.sign(effects[base][loss].mean()) for base, gains in places for loss in "ac"]
    assert (found.right["identity"], found.decided["identity"]) == (sum(signs), 4)
    assert found.loc["ahead_3", ["tau", "least", "greatest", "right"]].tolist() == [1, 1, 1, 4]


def test_several_tasks_become_one_figure(tmp_path, capsys):
    rows, effects = (
        rows_of({"a": [3.0, 2.0], "b": [0.1, 0.1], "c": [-1.0, -2.0]}),
        {"beside": pd.DataFrame({"a": [4.0, 5.0], "b": [0.0, 0.1], "c": [-3.0, -2.0]})},
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        horizon.over_places(rows, effects).to_csv(tmp_path / name / "overall.csv", index=False)
        horizon.by_measure(rows, effects).to_csv(tmp_path / name / "agreement.csv", index=False)
    folders = [str(tmp_path / name) for name in ("one", "two")]
    assert foresight.main([str(tmp_path / "figure.png"), *folders]) == 0 and (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    drawn = foresight.figure({Path(folder).name: foresight.read(Path(folder)) for folder in folders})
    assert [axis.get_title("left") for axis in drawn.axes] == ["one", "two"]
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["look-ahead, K = 3"]
    assert foresight.main([str(tmp_path / "none.png"), str(tmp_path)]) == 2 and not (tmp_path / "none.png").exists()
    assert "has no overall.csv; name one that benchmarks.horizon wrote with screening=" in capsys.readouterr().err


PRIMES = ["workload=workloads/examples/primes.py:Primes", "train.steps=40"]


@pytest.mark.parametrize("settings, words", [
    (["points=[0.5]"], "points=0.5: looks to step 50 of train.steps=40; lower it"), (["horizons=[10,3]"], "horizons=[10, 3]: must be numbers that rise"),
    (["num_seeds=0"], "num_seeds=0"), (["num_seeds=1000000000"], "num_seeds=1000000000: must lie between"), (["points=[]"], "points=[]: must be numbers that rise"),
    (["points=[.nan]"], "points[0]=.nan"), (["oracle_segments=11"], "oracle_segments=11: has oracle_steps=10"), (["oracle_bytes=-5"], "oracle_bytes=-5"),
    (["losses.set=primary"], "has no auxiliary loss to measure"), (["train.num_workers=2"], "train.num_workers=2: one process measures; leave it out"),
    (["measured=nowhere"], "measured=nowhere: has no gains.csv"), (["screening=nowhere"], "nowhere"),
])  # fmt: skip
def test_what_can_not_be_measured_is_refused(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(words)):
        command.main(cli.configure([*PRIMES, f"output={tmp_path}", *settings], command.Own))
    assert not list(tmp_path.iterdir())


def gradient(value: torch.Tensor, w: list[torch.Tensor]) -> torch.Tensor:
    return flat(list(torch.autograd.grad(value, w, allow_unused=True, materialize_grads=True, retain_graph=True)))


def forked(clip: float) -> dict[str, object]:
    """Measures of a toy run after three steps of two micro-batches."""
    from benchmarks.horizon_measures import Fork, course, look_ahead, one_step, oracle
    from meltr_ray.training.engine import Engine

    config = toy_config(0, steps=20, accumulation=2)
    config.losses.set, config.losses.primary, config.optimizer.clip = ["head", "decoder", "steep"], "head", clip
    engine = Engine(toy(dropout=0.0)[0], config, torch.device("cpu"))
    for number in range(3):
        for micro in range(2):
            engine.backward(engine.losses(toy_batch(2 * number + micro)).sum())
            engine.step(number)
    fork = Fork(engine, 3, [toy_batch(100 + i) for i in range(8)], [toy_batch(200 + i) for i in range(3)])
    before, found = engine.weights(), {}
    for base, a in fork.bases.items():
        found[base] = {
            "oracle": oracle(fork, a, 4, 2, 10**9), "one_step": {solver: one_step(fork, solver, a) for solver in ("identity", "cg", "loss_space")},
            "look_ahead": look_ahead(fork, base, [1, 4]),
            "difference": [-(course(fork, a + h, [4])[0] - course(fork, a - h, [4])[0]) / 0.04 for h in 0.02 * torch.eye(3)],
        }  # fmt: skip
    unmoved = all(torch.equal(x, y) for x, y in zip(before.values(), engine.weights().values()))
    w = list(engine.module.parameters())
    b = gradient(torch.stack([engine.module(batch, ("head",)).mean() for batch in fork.held_out]).mean(), w)
    aligned = torch.stack([gradient(l, w) @ b for l in (engine.module(fork.ahead[0]) + engine.module(fork.ahead[1])) / 2])
    found["aligned"] = (aligned / aligned[0].abs()).tolist()
    with pytest.raises(ValueError, match="max_bytes=1000"):
        oracle(fork, a, 4, 2, 1000)
    return found | {"unmoved": unmoved}


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_the_oracle_of_an_engine_is_the_difference_of_its_look_aheads(clip):
    (found,) = on_ranks(forked, 1, clip)
    assert found["unmoved"]
    for base in horizon.BASES:
        one = found[base]
        assert one["oracle"] == pytest.approx(one["difference"], rel=2e-2, abs=2e-3), base  # float32, and a wide difference
        assert abs(found["aligned"][0]) == pytest.approx(1.0)
        for solver in ("identity", "loss_space"):  # the same, where slopes are constant
            assert one["one_step"][solver] == pytest.approx(found["aligned"], rel=1e-3, abs=1e-4)
        assert set(one["look_ahead"]) == {"decoder", "steep"} and all(len(gains) == 2 for gains in one["look_ahead"].values())
