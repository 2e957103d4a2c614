"""The action of a turn is parsed like in MINT, and thoughts are ignored."""

import pytest

from sspo_cli.environments.actions import CALL, NOTHING, PROPOSAL, Action, read_action


@pytest.mark.parametrize(
    ("turn", "kind", "content", "well_formed"),
    [
        ("<execute>\nx = 1\n</execute>", CALL, "x = 1", True),
        ("<execute>  x\n  y </execute>\n", CALL, "  x\n  y ", True),
        ("Let me see. <execute>x</execute>", CALL, "x", True),
        ("<solution> 42 </solution>", PROPOSAL, " 42 ", True),
        ("<solution> 42 </solution>.", PROPOSAL, " 42 ", False),
        ("<execute>1</execute> so <solution>2</solution>", PROPOSAL, "2", False),
        ("<solution>2</solution> so <execute>1</execute>", PROPOSAL, "2", False),
        ("<execute>1</execute> and <execute>2</execute>", CALL, "1\n2", False),
        ("<solution>1</solution><solution>2</solution>", PROPOSAL, "1\n2", False),
        ("I give up.", NOTHING, "", False),
        ("", NOTHING, "", False),
        ("<execute>x", NOTHING, "", False),
        ("x</execute>", NOTHING, "", False),
        ("<execute>1</execute> <solution>2", CALL, "1", False),
        # Tags inside a block belong to its content.
        ("<execute>print('<solution>42</solution>')</execute>", CALL, "print('<solution>42</solution>')", True),
        ("<execute>print('</think>')</execute>", CALL, "print('</think>')", True),
        ("<solution>an <execute> tag</solution>", PROPOSAL, "an <execute> tag", True),
        # Thoughts hold no actions, whether they are closed or not.
        ("<think>try <execute>1</execute></think><execute>2</execute>", CALL, "2", True),
        ("<think>try <execute>1</execute>", NOTHING, "", False),
        ("<think>so <solution>1</solution>", NOTHING, "", False),
        ("</think><solution>1</solution>", PROPOSAL, "1", True),
        ("<execute>1</execute><think>", CALL, "1", False),
    ],
)
def test_actions(turn, kind, content, well_formed):
    assert read_action(turn) == Action(kind, content, well_formed)
