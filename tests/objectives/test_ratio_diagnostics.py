"""Ratio diagnostics agree with numpy and do not depend on the split of a minibatch."""

import numpy as np
import pytest
import torch
from objective_cases import ragged_batch

from sspo_cli.objectives import build_objective, ratio_metrics, weight_histogram


def batch(seed=0, rows=12, length=40):
    log_ratio, advantages, mask = ragged_batch(seed, torch.float32, rows, length)
    mask[3] = False
    return log_ratio, advantages, mask, build_objective(method="sspo").token_weights(log_ratio, advantages, mask)


NOTHING = (torch.zeros(0, 1), torch.zeros(0), torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0, 1))


def gathered(*parts):
    """Concatenate rows, for example those of several ranks."""
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)] if parts else NOTHING


def summary(*parts):
    return ratio_metrics(*gathered(*parts))


def test_against_numpy():
    log_ratio, advantages, mask, weights = batch()
    own = mask.numpy()
    d, w = log_ratio.double().numpy(), weights.double().numpy()
    sign = np.broadcast_to(np.sign(advantages.numpy())[:, None], own.shape)[own]
    tokens, weight = d[own], w[own]
    row_sign = np.sign(advantages.numpy())
    variance = np.array([d[i][own[i]].var() if own[i].any() else np.nan for i in range(len(d))])
    wanted = {}
    for name, some, rows in (
        ("", sign < 2, row_sign < 2),
        ("positive_", sign > 0, row_sign > 0),
        ("negative_", sign < 0, row_sign < 0),
    ):
        wanted |= {
            f"ratio/{name}log_mean": tokens[some].mean(),
            f"ratio/{name}log_std": tokens[some].std(),
            f"ratio/{name}log_abs_p99": np.quantile(np.abs(tokens[some]), 0.99, method="inverted_cdf"),
            f"ratio/{name}outside": np.mean(np.abs(np.exp(tokens[some]) - 1) > 0.2),
            f"ratio/{name}dispersion": np.nanmean(variance[rows]),
            f"ratio/{name}kl": np.mean(np.exp(tokens[some]) - 1 - tokens[some]),
            f"weights/{name}mean": weight[some & (sign != 0)].mean(),
            f"weights/{name}attenuated": np.mean(weight[some & (sign != 0)] < 0.5),
        }
    assert summary((log_ratio, advantages, mask, weights)) == pytest.approx(wanted, rel=1e-5)
    assert 0 < wanted["weights/attenuated"] < 1


def test_neither_split_nor_padding_matters():
    log_ratio, advantages, mask, weights = batch()
    whole = summary((log_ratio, advantages, mask, weights))
    for cuts in ([5, 7], [1] * 12, [3, 0, 9]):
        parts = zip(*(tensor.split(cuts) for tensor in (log_ratio, advantages, mask, weights)), strict=True)
        assert summary(*parts) == pytest.approx(whole, rel=1e-6)
    padded = [
        torch.nn.functional.pad(tensor, (0, 9), value=value) for tensor, value in ((log_ratio, torch.nan), (weights, 0))
    ]
    mask = torch.nn.functional.pad(mask, (0, 9))
    assert summary((padded[0], advantages, mask, padded[1])) == pytest.approx(whole, rel=1e-6)


def test_keys_without_a_token_are_left_out():
    log_ratio, _, mask, weights = batch()
    assert summary() == {}
    assert summary((log_ratio, torch.ones(12), torch.zeros_like(mask), weights)) == {}
    only_positive = summary((log_ratio, torch.ones(12), mask, weights))
    assert {key for key in only_positive if key.startswith("weights/")} == {
        "weights/mean",
        "weights/attenuated",
        "weights/positive_mean",
        "weights/positive_attenuated",
    }
    neutral = summary((log_ratio, torch.zeros(12), mask, weights))
    assert not [key for key in neutral if key.startswith("weights/")]


def test_extreme_ratios_stay_finite():
    log_ratio, advantages = torch.tensor([[100.0, -float("inf"), 0.0]]), torch.tensor([1.0])
    mask = torch.ones(1, 3)
    weights = build_objective(method="grpo").token_weights(log_ratio, advantages, mask)
    assert np.isfinite(list(summary((log_ratio, advantages, mask, weights)).values())).all()


def test_on_policy_nothing_is_attenuated():
    mask, advantages = torch.ones(2, 3), torch.tensor([1.0, -1.0])
    weights = build_objective(method="sspo").token_weights(torch.zeros(2, 3), advantages, mask)
    values = summary((torch.zeros(2, 3), advantages, mask, weights))
    means = {"weights/mean", "weights/positive_mean", "weights/negative_mean"}
    assert all(values[key] == (key in means) for key in values)


def test_a_weight_of_a_half_is_not_attenuated():
    weights, mask = torch.tensor([[0.0, 0.4999, 0.5, 0.5001]]), torch.ones(1, 4)
    assert summary((torch.zeros(1, 4), torch.tensor([1.0]), mask, weights))["weights/attenuated"] == 0.5


def histogram(*parts):
    _, advantages, mask, weights = gathered(*parts)
    return weight_histogram(weights, advantages, mask)


def test_the_histogram_of_weights_against_numpy():
    for method, gate in (("sspo", "atanlog"), ("sspo", "gumbel"), ("sapo", None), ("grpo", None)):
        log_ratio, advantages, mask, _ = batch(rows=60)
        advantages[7] = 0.0
        weights = build_objective(method=method, gate=gate).token_weights(log_ratio, advantages, mask)
        own, w = mask.bool().numpy(), weights.double().numpy().round(6)
        sign = np.broadcast_to(np.sign(advantages.numpy())[:, None], own.shape)[own]
        edges = [*(k / 20 for k in range(24)), np.inf]
        counts = {name: np.histogram(w[own][sign == s], edges)[0] for name, s in (("positive", 1), ("negative", -1))}
        assert sum(map(sum, counts.values())) == (sign != 0).sum()
        ours = histogram((log_ratio, advantages, mask, weights))
        assert ours == {"width": 0.05, **{name: of_sign.tolist() for name, of_sign in counts.items()}}
        assert max(sum(count > 0 for count in of_sign) for of_sign in counts.values()) > (1 if method == "grpo" else 9)
        for cuts in ([5, 55], [1] * 60, [30, 0, 30]):
            parts = zip(*(x.split(cuts) for x in (log_ratio, advantages, mask, weights)), strict=True)
            assert histogram(*parts) == ours


def test_a_weight_on_an_edge_falls_in_the_bin_above_and_the_last_bin_is_open():
    weights = torch.tensor([[0.0, 0.05, 0.15, 0.99, 1.0, 1.1499, 1.15, 1.2, 40.0, torch.nan]])
    mask = torch.ones_like(weights)
    counts = histogram((torch.zeros_like(weights), torch.tensor([-1.0]), mask, weights))
    filled = {number: count for number, count in enumerate(counts["negative"]) if count}
    assert filled == {0: 1, 1: 1, 3: 1, 19: 1, 20: 1, 22: 1, 23: 3}
    assert len(counts["negative"]) == 24
    assert counts["positive"] == [0] * 24
    assert histogram() == {"width": 0.05, "positive": [0] * 24, "negative": [0] * 24}


@pytest.mark.parametrize("method", ["grpo", "gspo", "gmpo", "sapo", "sspo"])
def test_on_policy_every_weight_is_1_whatever_the_length(method):
    """The weights are exactly 1 for every length, although 1/49 · 49 is not 1 in float32."""
    advantages = torch.tensor([1.0, -1.0]).repeat(150)
    mask = torch.arange(300) < torch.arange(300)[:, None] + 1
    weights = build_objective(method=method).token_weights(torch.zeros(300, 300), advantages, mask)
    counts = histogram((torch.zeros(300, 300), advantages, mask, weights))
    for sign, rows in (("positive", mask[::2]), ("negative", mask[1::2])):
        assert counts[sign] == [0] * 20 + [int(rows.sum())] + [0] * 3
