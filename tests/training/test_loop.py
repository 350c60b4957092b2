import jax.numpy as jnp
import pytest

from jaxadv.core.types import UserError
from jaxadv.runs import signals
from jaxadv.training.loop import run_steps


def run(batches, earlier=(), losses=lambda total: total):
    def step(state, batch):
        return state + batch, {"loss": losses(jnp.float32(state + batch))}

    return run_steps(
        step, 0, [(b,) for b in batches], earlier=earlier, num_steps=len(batches), num_images=1,
        title="Epoch 1/1", advice="Lower the rate",
    )  # fmt: skip


def test_each_step_gets_the_state_of_the_last():
    state, history, stopped = run([1, 2, 3], earlier=[{"loss": 0.5}])
    assert (state, stopped) == (6, False)
    assert history == [{"loss": 0.5}, {"loss": 1.0}, {"loss": 3.0}, {"loss": 6.0}]


def test_a_finished_epoch_has_no_remaining_steps():
    assert run([], earlier=[{"loss": 0.5}]) == (0, [{"loss": 0.5}], False)


def test_a_request_to_stop_ends_the_steps(monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr(signals, "stop_requested", lambda: next(answers))
    assert run([1, 2, 3]) == (3, [{"loss": 1.0}, {"loss": 3.0}], True)


@pytest.mark.parametrize("bad", [2, 4])
def test_a_loss_that_is_not_finite_is_reported_with_its_step(bad):
    sums = [0, 1, 3, 6, 10]
    with pytest.raises(UserError, match=f"Epoch 1/1, step {bad}: the loss is nan.* Lower the rate"):
        run([1, 2, 3, 4], losses=lambda total: jnp.where(total == sums[bad], jnp.nan, total))
