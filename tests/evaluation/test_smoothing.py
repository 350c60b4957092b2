"""Randomised smoothing of a linear classifier, whose smoothed version has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm

from jaxadv.evaluation.smoothing import (
    ABSTAIN,
    Certificate,
    certified,
    certify,
    count_predictions,
    lower_bound,
    predict,
    rounding_allowance,
    with_input_noise,
)

SIGMA = 0.25
WEIGHTS = np.random.default_rng(0).normal(size=12).astype(np.float32)
# Distances to the boundary in units of sigma; the smoothed class is 1 where they are positive.
DISTANCES = np.array([-1.5, -0.5, 0.0, 0.5, 1.0, 1.5, 9.0])


def logits_fn(key, images):
    score = images.reshape(len(images), -1) @ WEIGHTS
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)


IMAGES = jnp.asarray(
    (SIGMA * DISTANCES[:, None] * WEIGHTS / np.linalg.norm(WEIGHTS)).reshape(-1, 2, 2, 3),
    jnp.float32,
)
NOISY = with_input_noise(logits_fn, SIGMA)


def counts_fn(stage, num_samples):
    key = jax.random.fold_in(jax.random.key(0), stage)
    return np.asarray(count_predictions(key, NOISY, IMAGES, num_samples))


def test_counts_have_the_known_probabilities():
    counts = counts_fn(0, 20_000)
    assert (counts.sum(axis=1) == 20_000).all()
    np.testing.assert_allclose(counts[:, 1] / 20_000, norm.cdf(DISTANCES), atol=0.012)
    assert len(np.unique(counts_fn(1, 20_000)[:-1] - counts[:-1])) > 1  # independent noise


def test_counts_of_parts_add_up():
    key = jax.random.key(0)
    parts = [count_predictions(key, NOISY, IMAGES, 50, first) for first in (0, 50)]
    np.testing.assert_array_equal(sum(parts), count_predictions(key, NOISY, IMAGES, 100))


def test_the_radius_is_the_distance_to_the_boundary():
    certificate = certify(counts_fn, SIGMA, image_shape=(2, 2, 3), num_estimation=20_000)
    decided = np.abs(DISTANCES) > 0.1
    np.testing.assert_array_equal(certificate.predictions[decided], DISTANCES[decided] > 0)
    assert certificate.predictions[~decided] == ABSTAIN
    assert certificate.radii[~decided] == 0
    distances = SIGMA * np.abs(DISTANCES)
    assert (certificate.radii <= distances).all()  # a certificate fails once in a thousand
    np.testing.assert_allclose(certificate.radii[:-1], distances[:-1], atol=0.02)


def test_no_radius_is_larger_than_the_samples_allow():
    # Cohen et al. 2019: about 3.8 sigma for 100,000 samples and alpha 0.001, if all agree.
    everything = certify(lambda stage, n: np.array([[0, n]]), 1.0, image_shape=(2, 2, 3))
    assert everything.radii[0] == pytest.approx(3.8, abs=0.02)
    assert everything.radii[0] == pytest.approx(norm.ppf(0.001 ** (1 / 100_000)), rel=2e-6)


@pytest.mark.parametrize("n", [10, 1000])
def test_the_bound_is_that_of_scipy(n):
    successes = np.array([0, 1, n // 2, n - 1, n])
    expected = [
        binomtest(int(k), n, alternative="greater").proportion_ci(0.999, "exact").low
        for k in successes
    ]
    np.testing.assert_allclose(lower_bound(successes, n, 0.001), expected, rtol=1e-6)


def test_the_bound_is_the_published_one():
    # Clopper & Pearson 1934: of 10 trials with no failure, the lower 95 % limit (one-sided
    # 97.5 %) is 0.692.
    assert lower_bound(np.array([10]), 10, 0.025)[0] == pytest.approx(0.692, abs=5e-4)


def test_predict_abstains_where_two_classes_are_equally_frequent():
    predictions = predict(counts_fn, 2000)
    expected = np.where(np.abs(DISTANCES) < 0.1, ABSTAIN, DISTANCES > 0)
    np.testing.assert_array_equal(predictions, expected)


def test_certified_examples_are_correct_within_the_radius():
    radii = np.array([0.2, 0.1, 0.3, 0.0])
    certificate = Certificate(np.array([1, 1, 0, ABSTAIN]), radii, 0 * radii, 0 * radii)
    labels = np.array([1, 1, 1, 1])
    np.testing.assert_array_equal(certified(certificate, labels, 0.0), [1, 1, 0, 0])
    np.testing.assert_array_equal(certified(certificate, labels, 0.15), [1, 0, 0, 0])
    with pytest.raises(
        ValueError, match=r"^radius is -0.1: it must be a finite number, 0 or more$"
    ):
        certified(certificate, labels, -0.1)


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (32, 32, 3), (224, 224, 3)])
def test_radii_are_reduced_by_at_most_the_rounding_allowance(image_shape):
    # The exact radius, from the normal quantile of the bound of Clopper and Pearson.
    n, sigma = 1000, 0.25
    successes = np.array([600, 700, 900, 990, 999, 1000])
    counts = np.stack([n - successes, successes], axis=1)
    certificate = certify(
        lambda stage, m: counts if stage else np.tile([0, m], (len(counts), 1)),
        sigma, image_shape=image_shape, num_estimation=n,
    )  # fmt: skip
    exact = sigma * norm.ppf(beta.ppf(0.001, successes, n - successes + 1))
    assert (certificate.predictions == 1).all()
    assert certificate.radii.dtype == np.float64
    shortfall = exact - certificate.radii
    assert (shortfall > 0).all()
    np.testing.assert_allclose(shortfall, certificate.allowances, rtol=1e-4)
    # sqrt(d) 2**-24 (1 + 4 sigma) for either end, and (d / 2 + 4) 2**-24 of the radius.
    size = np.prod(image_shape)
    expected = 2.0**-24 * (2 * size**0.5 * (1 + 4 * sigma) + (size / 2 + 4) * exact)
    np.testing.assert_allclose(certificate.allowances, expected, rtol=1e-6)


def test_the_allowance_covers_float32_rounding_of_norms_and_noisy_images():
    # The running sum of float32, the least exact order, of a perturbation as long as the radius.
    generator = np.random.default_rng(0)
    shape, sigma, radius = (32, 32, 3), 0.25, 0.5
    allowance = rounding_allowance(np.array([radius]), sigma, shape)[0]
    for _ in range(20):
        change = generator.normal(size=shape).astype(np.float32)
        change *= np.float32(radius / np.linalg.norm(change.astype(np.float64)))
        squares = (change**2).ravel()
        short = np.sqrt(np.cumsum(squares, dtype=np.float32)[-1])
        true = np.sqrt((change.astype(np.float64) ** 2).sum())
        image = generator.random(shape).astype(np.float32)
        noise = generator.normal(size=shape).astype(np.float32)
        noisy = image + np.float32(sigma) * noise
        moved = noisy - (image.astype(np.float64) + sigma * noise.astype(np.float64))
        assert abs(true - float(short)) + 2 * np.linalg.norm(moved) < allowance


def test_radii_below_the_allowance_are_not_certified():
    # 10 unanimous forward passes bound p by 0.5012: a radius of 0.003 sigma, below the allowance of
    # an image with a thousand million values.
    def agree(stage, n):
        return np.array([[0, n]])

    small = certify(agree, 1.0, image_shape=(8, 8, 1), num_estimation=10)
    assert small.predictions[0] == 1
    assert 0 < small.radii[0] < 0.003
    large = certify(agree, 1.0, image_shape=(20_000, 20_000, 3), num_estimation=10)
    assert large.predictions[0] == ABSTAIN
    assert large.radii[0] == 0


def test_unanimous_forward_passes_give_a_finite_radius_at_any_confidence():
    failure = np.nextafter(1.0, 0)
    certificate = certify(
        lambda stage, n: np.array([[0, n]]), 1.0, image_shape=(2, 2, 3), failure=failure
    )
    assert np.isfinite(certificate.radii).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_forward_passes_count_for_no_class(value):
    def nonfinite(key, images):
        logits = NOISY(key, images)
        return logits.at[:, 0].set(jnp.where(images[:, 0, 0, 0] < 0, value, logits[:, 0]))

    counts = np.asarray(count_predictions(jax.random.key(0), nonfinite, IMAGES, 50))
    is_nonfinite = np.asarray(IMAGES[:, 0, 0, 0] < 0)
    assert 0 < is_nonfinite.sum() < len(IMAGES)
    np.testing.assert_array_equal(counts[is_nonfinite], 0)
    np.testing.assert_array_equal(counts[~is_nonfinite], counts_fn_of(NOISY, 50)[~is_nonfinite])


def counts_fn_of(noisy, num_samples):
    return np.asarray(count_predictions(jax.random.key(0), noisy, IMAGES, num_samples))


def test_a_model_with_nan_logits_is_neither_certified_nor_predicted():
    def nothing(stage, n):
        return counts_fn_of(lambda key, images: jnp.full((len(images), 2), jnp.nan), n)

    certificate = certify(nothing, SIGMA, image_shape=(2, 2, 3), num_estimation=100)
    assert (certificate.predictions == ABSTAIN).all()
    assert (certificate.radii == 0).all()
    assert (certificate.num_nonfinite == 200).all()
    with pytest.warns(UserWarning, match="700 of 700 forward passes have NaN or infinite logits"):
        assert (predict(nothing, 100) == ABSTAIN).all()


def test_nonfinite_forward_passes_lower_the_bound():
    # 900 of 1000 and 100 of another class, or 100 of none: the certificate is the same.
    def some(row):
        return lambda stage, n: np.array([[0, n] if stage == 0 else row])

    options = {"image_shape": (2, 2, 3), "num_estimation": 1000}
    other, none = (certify(some(row), 1.0, **options) for row in ([100, 900], [0, 900]))
    np.testing.assert_array_equal(none.radii, other.radii)
    assert (other.num_nonfinite[0], none.num_nonfinite[0]) == (0, 100)
    assert none.radii[0] == pytest.approx(norm.ppf(beta.ppf(0.001, 900, 101)), rel=1e-5)


@pytest.mark.parametrize(
    ("row", "expected"), [([0, 600], ABSTAIN), ([0, 900], 1), ([0, 20], ABSTAIN)]
)
def test_predict_counts_nonfinite_forward_passes_for_the_runner_up(row, expected):
    with pytest.warns(UserWarning, match=f"{1000 - sum(row)} of 1000 forward passes"):
        found = predict(lambda stage, n: np.array([row]), 1000, failure=1e-12)
    assert found == [expected]


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("sigma", -0.1, "a finite number above 0"),
        ("sigma", 0.0, "a finite number above 0"),
        ("sigma", np.nan, "a finite number above 0"),
        ("sigma", np.inf, "a finite number above 0"),
        ("failure", 1.0, "between 0 and 1, exclusive"),
        ("failure", 0.0, "between 0 and 1, exclusive"),
        ("failure", -0.1, "between 0 and 1, exclusive"),
        ("failure", np.nan, "between 0 and 1, exclusive"),
        ("num_selection", 0, "an integer, 1 or more"),
        ("num_estimation", 0, "an integer, 1 or more"),
        ("num_estimation", -1, "an integer, 1 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value, says):
    options = {"sigma": SIGMA, "image_shape": (2, 2, 3), argument: value}
    with pytest.raises(ValueError, match=rf"^{argument} is {value}: it must be {says}$"):
        certify(counts_fn, **options)


def test_predict_and_count_refuse_the_same_arguments():
    with pytest.raises(ValueError, match=r"^num_samples is 0: it must be an integer"):
        predict(counts_fn, 0)
    with pytest.raises(ValueError, match=r"^failure is 1.0: it must be between 0 and 1"):
        predict(counts_fn, 100, failure=1.0)
    with pytest.raises(ValueError, match=r"^num_samples is 0: it must be an integer"):
        count_predictions(jax.random.key(0), NOISY, IMAGES, 0)
    with pytest.raises(ValueError, match=r"^sigma is -0.1: it must be a finite number, 0 or more$"):
        with_input_noise(logits_fn, -0.1)


@pytest.mark.parametrize("failure", [0.5, 0.1, 0.05, 0.001, 2**-10, 1e-6, 0.9])
def test_a_warning_names_the_fewest_forward_passes_that_can_certify(failure):
    enough = next(n for n in range(1, 100) if failure ** (1 / n) > 0.5)
    options = {"sigma": 1.0, "image_shape": (1, 1, 1), "num_selection": 1, "failure": failure}

    def agree(stage, n):
        return np.array([[0, n]])

    assert certify(agree, num_estimation=enough, **options).predictions == [1]
    if enough > 1:
        with pytest.warns(UserWarning, match=f"Use num_estimation={enough} or more"):
            certificate = certify(agree, num_estimation=enough - 1, **options)
        assert certificate.predictions == [ABSTAIN]


@pytest.mark.parametrize("failure", [0.1, 0.05, 0.001, 2**-10, 1e-6])
def test_a_warning_names_the_fewest_forward_passes_that_can_predict(failure):
    enough = next(n for n in range(1, 100) if binomtest(n, n).pvalue <= failure)

    def agree(stage, n):
        return np.array([[0, n]])

    assert predict(agree, enough, failure) == [1]
    with pytest.warns(UserWarning, match=f"Use num_samples={enough} or more"):
        assert predict(agree, enough - 1, failure) == [ABSTAIN]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        (np.array([[100]]), r"counts have shape \(1, 1\), not .* at least 2 classes"),
        (np.array([100]), r"counts have shape \(1,\)"),
        (np.array([[60, 60]]), "120 per image: they must be those of 100 forward passes"),
        (np.array([[-10, 60]]), "counts are -10 or more"),
    ],
)
def test_impossible_counts_are_refused(counts, says):
    with pytest.raises(ValueError, match=says):
        certify(lambda stage, n: counts, 1.0, image_shape=(2, 2, 3), num_estimation=100)
    with pytest.raises(ValueError, match=says):
        predict(lambda stage, n: counts, 100)


def test_a_single_logit_is_refused():
    with pytest.raises(ValueError, match="2 or more"):
        count_predictions(jax.random.key(0), lambda _, x: x.sum((1, 2)), IMAGES[..., :1], 10)


def test_new_weights_are_seen():
    weights = [WEIGHTS]

    def current(key, images):
        score = images.reshape(len(images), -1) @ weights[0]
        return jnp.stack([jnp.zeros_like(score), score], axis=-1)

    before = counts_fn_of(current, 10)
    weights[0] = -WEIGHTS
    np.testing.assert_array_equal(counts_fn_of(current, 10)[3:], before[3:, ::-1])
