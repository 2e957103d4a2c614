"""Tests of the group advantages, eq. (4)."""

import paper_in_mpmath as paper
import pytest
import torch
from mpmath import mpf

from sspo_cli.objectives import group_advantages


def test_by_hand():
    rewards = torch.tensor([[2.0, 0.0, 0.0, 2.0], [0.25, 1.25, 0.25, 0.25]])
    centred = torch.tensor([[1.0, -1.0, -1.0, 1.0], [-0.25, 0.75, -0.25, -0.25]])
    torch.testing.assert_close(group_advantages(rewards, "none"), centred)
    torch.testing.assert_close(group_advantages(rewards, "population"), centred / torch.tensor([[1.0], [3**0.5 / 4]]))
    torch.testing.assert_close(group_advantages(rewards, "sample"), centred / torch.tensor([[(4 / 3) ** 0.5], [0.5]]))
    assert torch.equal(group_advantages(rewards), group_advantages(rewards, "sample"))


@pytest.mark.parametrize(("std", "ddof"), [("sample", 1), ("population", 0)])
def test_against_the_formula(std, ddof):
    rewards = torch.randint(0, 9, (20, 8), generator=torch.Generator().manual_seed(0)) / 4
    wanted = [[float(value) for value in paper.standardized([mpf(r) for r in row], ddof)] for row in rewards.tolist()]
    torch.testing.assert_close(group_advantages(rewards, std), torch.tensor(wanted))


@pytest.mark.parametrize("std", ["sample", "population", "none"])
def test_equal_rewards_give_exactly_zero(std):
    """The float mean of equal numbers may differ from them, and their deviation from it would then not be 0."""
    groups = torch.arange(1, 200)[:, None].expand(-1, 7) / 300
    assert (groups.mean(1) != groups[:, 0]).any()
    assert (group_advantages(groups, std) == 0).all()


def test_whole_numbers():
    assert group_advantages(torch.tensor([[0, 2]]), "population").tolist() == [[-1.0, 1.0]]


def test_float64_stays():
    assert group_advantages(torch.rand(2, 4, dtype=torch.float64)).dtype == torch.float64
