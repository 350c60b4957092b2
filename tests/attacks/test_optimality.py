import numpy as np
import pytest

from jaxadv.attacks.optimality import global_optimality, local_optimality

INF = np.inf


def area(distances, end):
    """The area under the curve of accuracy over distance, by summing thin rectangles."""
    edges = np.linspace(0, end, 200_001)
    centres = (edges[1:] + edges[:-1]) / 2
    accuracy = (np.sort(distances)[None] > centres[:, None]).mean(1)
    return accuracy.sum() * (edges[1] - edges[0])


def test_it_is_the_ratio_of_the_areas_of_attackbench():
    """Compare with 1 - (area - best) / (clean accuracy * end - best)."""
    generator = np.random.default_rng(0)
    distances = {name: generator.exponential(size=20) for name in "abc"}
    for one in distances.values():
        one[:3] = 0  # misclassified without a perturbation
    distances["b"][5] = INF
    best = np.min(list(distances.values()), axis=0)
    end, clean = best.max(), (best > 0).mean()
    found = local_optimality(distances)
    for name, one in distances.items():
        expected = 1 - (area(one, end) - area(best, end)) / (clean * end - area(best, end))
        assert found[name] == pytest.approx(expected, abs=1e-3)


def test_an_attack_that_is_nearest_everywhere_is_optimal():
    near, far = np.array([0.0, 0.1, 0.4]), np.array([0.0, 0.3, 0.5])
    found = local_optimality({"near": near, "far": far, "fails": np.array([0.0, INF, INF])})
    assert found["near"] == 1
    assert 0 < found["far"] < 1
    assert found["fails"] == 0


def test_examples_that_no_attack_fools_do_not_count():
    some = {"a": np.array([0.1, 0.4]), "b": np.array([0.2, 0.4])}
    more = {name: np.append(one, INF) for name, one in some.items()}
    assert local_optimality(more) == pytest.approx(local_optimality(some))


def test_without_a_success_there_is_none():
    assert local_optimality({"a": np.array([0.0, INF])}) == {"a": None}
    assert global_optimality([{"a": None}]) == {}
    assert global_optimality([{"a": None}, {"a": 0.5}]) == {"a": 0.5}


def test_equal_distances_are_optimal():
    found = local_optimality({"a": np.array([0.3, 0.3]), "b": np.array([0.3, INF])})
    assert found == {"a": 1.0, "b": 0.5}


def test_different_examples_or_attacks_are_refused():
    with pytest.raises(ValueError, match="different numbers of examples"):
        local_optimality({"a": np.ones(2), "b": np.ones(3)})
    with pytest.raises(ValueError, match="different attacks"):
        global_optimality([{"a": 1.0}, {"b": 1.0}])
