"""Every draw of a run has a separate seed."""

from itertools import product

from sspo_cli.seeds import derive_seed


def test_different_triples_have_different_seeds_and_the_same_one_the_same():
    triples = [
        *product((0, 1, 11), ("sampling", "minibatches", "evaluation on a", "evaluation on a1", "1"), (0, 1, 10, 11))
    ]
    seeds = {derive_seed(*triple) for triple in triples}
    assert len(seeds) == len(triples)
    assert seeds == {derive_seed(*triple) for triple in triples}


def test_seeds_are_what_generators_take_and_fill_that_range():
    seeds = [derive_seed(0, "sampling", index) for index in range(64)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) >= 2**62
