import pytest

from r3core import assert_certified, get_task

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def test_the_verifier_can_be_trusted():
    assert_certified(get_task("countdown"))
