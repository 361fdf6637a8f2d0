"""The table of slow tests."""

from fixtures.slow import SLOW, TESTS, collected


def test_slow_tests_exist(pytestconfig):
    missing = [path for path in SLOW if not (TESTS / path).exists()]
    names = collected(pytestconfig)  # of the files that were collected as a whole
    missing += [f"{path}::{name}" for path in SLOW if path in names for name in set(SLOW[path]) - names[path]]
    assert not missing, "tests/fixtures/slow.py lists tests that do not exist"
