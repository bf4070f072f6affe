from r3core import assert_certified, get_task


def test_the_verifier_can_be_trusted():
    assert_certified(get_task("apigen"))
