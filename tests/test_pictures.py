import numpy as np
import pytest

from jaxadv import pictures


def test_amplified_perturbations_fill_the_range():
    perturbations = np.zeros((1, 2, 2, 3))
    perturbations[0, 0, 0] = 0.02
    perturbations[0, 1, 1] = -0.01
    images, factor = pictures.amplify(perturbations)
    assert factor == pytest.approx(25)
    assert images[0, 0, 0] == pytest.approx(1.0)
    assert images[0, 1, 1] == pytest.approx(0.25)
    assert images[0, 0, 1] == pytest.approx(0.5)


def test_no_perturbation_is_grey():
    images, factor = pictures.amplify(np.zeros((1, 2, 2, 3)))
    assert factor == 1.0
    assert images == pytest.approx(0.5)
