from benchmarks.start_up import STOP_AFTER_FIRST_STEP
from jaxadv.training import train


def test_the_function_that_is_replaced_exists():
    assert "training._step" in STOP_AFTER_FIRST_STEP
    assert callable(train._step)
