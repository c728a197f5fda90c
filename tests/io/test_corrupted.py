"""A few of the corrupted files and states of `python tests/corrupted`."""

import pytest

from corrupted.cases import one_case


@pytest.mark.filterwarnings("ignore")
def test_corrupted_files_and_states_are_refused_or_harmless() -> None:
    endings = [one_case(3, number) for number in range(40)]
    verdicts = {ending.verdict for ending in endings}
    assert "refused" in verdicts
    bad = [e for e in endings if e.verdict not in ("refused", "harmless", "another")]
    assert not bad, bad
