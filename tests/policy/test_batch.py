import pytest
import torch

from sspo_cli.policy.batch import minibatch_rows


def test_collate_keeps_every_token_of_every_completion(make_batch):
    batch = make_batch()
    assert len(batch) == 12
    assert (batch.mask.sum(dim=1) == batch.lengths).all()
    assert batch.tokens.shape[1] == (batch.prompt_lengths + batch.lengths).max()
    for row in range(len(batch)):
        end = int(batch.prompt_lengths[row] + batch.lengths[row])
        assert (batch.tokens[row, :end] >= 4).all()
        assert (batch.tokens[row, end:] == 0).all()


def test_truncated_completions_leave_the_loss_only_when_asked_to(make_batch):
    kept, left_out = make_batch(), make_batch(mask_truncated=True)
    assert kept.truncated.any()
    assert (kept.mask.any(dim=1)).all()
    assert (left_out.mask.any(dim=1) == ~left_out.truncated).all()
    assert (left_out.lengths == kept.lengths).all()


@pytest.mark.parametrize("together", [True, False])
def test_micro_batches_partition_the_rows_within_the_token_budget(make_batch, together):
    batch = make_batch(prompts=6)
    seen = []
    for rows, micro in batch.micro_batches(60, together):
        assert len(micro) * micro.tokens.shape[1] <= 60
        assert micro.tokens.shape[1] == (micro.prompt_lengths + micro.lengths).max()
        assert (micro.advantages == batch.advantages[rows]).all()
        seen += rows.tolist()
    assert sorted(seen) == list(range(24))


def test_a_row_longer_than_the_budget_is_a_separate_micro_batch(make_batch):
    assert [len(rows) for rows, _ in make_batch().micro_batches(1, False)] == [1] * 12


def test_length_sorting_wastes_little_padding(make_batch):
    batch = make_batch(prompts=64)
    useful = int((batch.prompt_lengths + batch.lengths).sum())
    computed = sum(len(micro) * micro.tokens.shape[1] for _, micro in batch.micro_batches(200, False))
    assert computed <= 1.05 * useful


def test_minibatches_are_disjoint_whole_groups_that_cover_the_batch_in_every_epoch():
    plan = minibatch_rows(prompts=6, group_size=4, mu=3, epochs=2, seed=1)
    assert len(plan) == 6
    for epoch in (plan[:3], plan[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(24))
        for rows in epoch:
            assert sorted(rows.tolist()) == [
                r for g in sorted({r // 4 for r in rows.tolist()}) for r in range(4 * g, 4 * g + 4)
            ]
    assert [rows.tolist() for rows in plan[:3]] != [rows.tolist() for rows in plan[3:]]
    again = minibatch_rows(prompts=6, group_size=4, mu=3, epochs=2, seed=1)
    assert all((a == b).all() for a, b in zip(plan, again, strict=True))
    other = minibatch_rows(prompts=6, group_size=4, mu=3, epochs=2, seed=2)
    assert [rows.tolist() for rows in plan] != [rows.tolist() for rows in other]
