import numpy as np
import pytest

from jaxadv.core.types import UserError
from jaxadv.evaluation.export import round_inside


@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 3, 1), (1, 1, 4)])
@pytest.mark.parametrize(
    ("norm", "eps", "order"),
    [("linf", 8 / 255, np.inf), ("linf", 0.03, np.inf), ("l2", 0.05, 2), ("l1", 0.3, 1)],
)
def test_bytes_stay_inside_the_ball_and_close_to_the_floats(norm, eps, order, shape):
    generator = np.random.default_rng(0)
    clean = generator.integers(0, 256, (20, *shape), dtype=np.uint8)
    delta = generator.uniform(-1, 1, clean.shape)
    sizes = np.linalg.norm(delta.reshape(20, -1), order, axis=1)
    adversarial = np.clip(clean / 255 + eps * delta / sizes[:, None, None, None], 0, 1)
    rounded = round_inside(adversarial.astype(np.float32), clean, eps, norm)
    change = (rounded / 255 - clean / 255).reshape(20, -1)
    assert (np.linalg.norm(change, order, axis=1) <= eps + 1e-6).all()
    assert np.abs(rounded / 255 - adversarial).max() < 1 / 255
    whole = round_inside(rounded.astype(np.float32) / 255, clean, eps, norm)
    np.testing.assert_array_equal(whole, rounded)


def test_in_l1_no_more_values_than_needed_are_rounded_inwards():
    clean = np.full((1, 10, 10, 3), 100, np.uint8)
    change = np.zeros((1, 10, 10, 3))
    change[0, :5] = 2.6  # 150 values, which round to 3: 450 instead of 390
    change[0, 0, 0, 0] = 2.5 + 1e-3  # moved farthest outwards
    rounded = round_inside((clean + change).astype(np.float32) / 255, clean, 390 / 255, "l1")
    moved = rounded.astype(int) - 100
    assert moved.sum() == 390
    assert moved[0, 0, 0, 0] == 2
    assert not moved[0, 5:].any()


def test_in_linf_only_the_pixels_that_leave_the_ball_are_rounded_inwards():
    clean = np.full((1, 2, 2, 3), 100, np.uint8)
    change = np.full((1, 2, 2, 3), 3.6)
    change[0, 0, 0, 0] = 7.65  # 0.03 of 255, which rounds to 8
    rounded = round_inside((clean + change).astype(np.float32) / 255, clean, 0.03, "linf")
    assert rounded[0, 0, 0, 0] == 107
    assert (rounded[0, 1] == 104).all()


def test_float_images_cannot_be_written_as_bytes():
    clean = np.full((1, 2, 2, 1), 0.5, np.float32)
    with pytest.raises(UserError, match=r"^the images are float32, [^\n]* pass [^\n]* uint8"):
        round_inside(clean, clean, 0.1, "linf")
