"""A tenth of what `tools/mutate.py` tries: every changed file is read, or refused by an
`EchosetError`, in time and without much memory.
"""

import pytest
from mutate import run
from mutated import KINDS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_changed_files_are_read_or_refused():
    outcomes = run(500, seed=0)
    assert set(outcomes) == set(KINDS)
    assert not [problem for outcome in outcomes.values() for problem in outcome.problems]
    for name, outcome in outcomes.items():
        assert outcome.counts["refused"] > 10, name
    assert sum(outcome.counts["read"] for outcome in outcomes.values()) > 50
