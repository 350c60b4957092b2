"""Logits and gradients that are not finite: never robust by accident, and always counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, images_of, run, run_autoattack
from linear_model import LOGITS_FN, apply, examples

from jaxadv.attacks import BlackBox, Queried, nes, pgd, square
from jaxadv.attacks.expectation import Noise, expected_logits, expected_value_and_gradient
from jaxadv.attacks.flags import probe
from jaxadv.attacks.gradient import pgd as gradient_pgd
from jaxadv.logits import finite_logits, predicted_class
from jaxadv.losses import LOSSES, dlr, margin

KEY = jax.random.key(0)
IMAGES, _ = examples(n=8, low=0.3, high=0.7)
LABELS = LOGITS_FN(None, IMAGES).argmax(axis=1).astype(jnp.int32)  # all right
every_attack = pytest.mark.parametrize("name", CALLS)


def all_nan(key, images):
    return LOGITS_FN(key, images) * jnp.nan


def all_infinite(key, images):
    return LOGITS_FN(key, images) + jnp.inf


def nan_beyond(radius):
    """NaN once a pixel is farther than that from its clean image, and else right by far."""

    def logits_fn(key, images):
        far = jnp.abs(images - IMAGES).max(axis=(1, 2, 3)) > radius
        sure = 100 * jax.nn.one_hot(LABELS, 5) + LOGITS_FN(key, images)
        return jnp.where(far[:, None], jnp.nan, sure)

    return logits_fn


def nan_gradient(key, images):
    """Finite logits, whose gradient is NaN wherever a pixel is below a half: faults 3 and 23."""
    hidden = 0 * jnp.sqrt(jnp.maximum(images - 0.5, 0)).sum(axis=(1, 2, 3))
    return LOGITS_FN(key, images) + hidden[:, None]


def standardised(key, images):
    """Per-image standardisation, which divides by 0 on an image of one colour."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = jnp.sqrt(((images - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True))
    return apply(np.asarray(WEIGHTS), key, (images - mean) / jnp.maximum(deviation, 1e-3))


WEIGHTS = np.random.default_rng(0).normal(size=(48, 5))


def test_a_row_with_one_bad_logit_is_misclassified_and_predicts_nothing():
    logits = jnp.array([[9.0, 0, 0], [9, jnp.nan, 0], [9, jnp.inf, 0], [9, -jnp.inf, 0]])
    labels = jnp.zeros(4, jnp.int32)
    np.testing.assert_array_equal(margin(logits, labels), [-9, jnp.inf, jnp.inf, jnp.inf])
    np.testing.assert_array_equal(predicted_class(logits), [0, -1, -1, -1])
    np.testing.assert_array_equal(jnp.isnan(finite_logits(logits)).all(axis=1), [0, 1, 1, 1])
    # One bad pass of a random model spoils the mean of all.
    keys = iter([logits, logits[:1].repeat(4, axis=0)])
    mean = jax.nn.logsumexp(
        jnp.stack([jax.nn.log_softmax(finite_logits(part)) for part in keys]), axis=0
    )
    np.testing.assert_array_equal(predicted_class(mean), [0, -1, -1, -1])


def test_huge_logits_are_finite_numbers():
    logits = jnp.array([[3e38, -3e38, 0.0]])
    for loss in LOSSES.values():
        assert np.isfinite(loss(finite_logits(logits), jnp.array([0])))
    assert predicted_class(logits) == 0


@every_attack
@pytest.mark.parametrize("model", [all_nan, all_infinite])
def test_a_model_without_finite_logits_is_never_robust(name, model):
    found = run(name, model, IMAGES, LABELS)
    images = images_of(found)
    assert np.isfinite(images).all()
    assert (predicted_class(model(None, images)) != LABELS).all()
    if isinstance(found, Queried):
        assert found.success.all()
        # What sees labels alone knows no margins.
        assert name == "nes_label_only" or np.isposinf(found.margins).all()


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_autoattack_counts_them_as_broken_and_says_so(version):
    found = run_autoattack(all_nan, IMAGES, LABELS, version=version)
    assert found.accuracies()["clean"] == 0
    assert "The logits of 8 of 8 images" in found.flags["nonfinite_logits"]


@pytest.mark.parametrize("name", ["pgd", "apgd", "nes", "square", "random_search"])
def test_logits_that_turn_nan_inside_of_the_ball_break_the_example(name):
    changes = {"num_steps": 20} if name in ("pgd", "apgd") else {"num_queries": 60}
    model = nan_beyond(0.05)
    if name == "nes":
        changes["loss"] = "margin"  # whose differences are above rounding
    found = run(name, model, IMAGES, LABELS, **changes)
    images = images_of(found)
    assert np.isfinite(images).all()
    assert (predicted_class(model(None, images)) == -1).all()
    if isinstance(found, Queried):
        assert found.success.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "fab"])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_is_counted(name, norm):
    found = run(name, nan_gradient, IMAGES, LABELS, norm=norm)
    images = images_of(found)
    assert np.isfinite(images).all()
    if name == "fgsm":
        np.testing.assert_array_equal(images, IMAGES)
    if isinstance(found, Queried):
        np.testing.assert_array_equal(found.nonfinite, found.gradients)
        assert (found.nonfinite[~found.success] > 0).all()


def test_pgd_counts_them_too():
    options = {"eps": 0.1, "step_size": 0.05, "num_steps": 3, "num_noise_samples": 2}
    counted = gradient_pgd.__wrapped__(KEY, nan_gradient, IMAGES, LABELS, **options)
    np.testing.assert_array_equal(counted.nonfinite, 6)
    counted = gradient_pgd.__wrapped__(KEY, LOGITS_FN, IMAGES, LABELS, **options)
    np.testing.assert_array_equal(counted.nonfinite, 0)


@pytest.mark.parametrize("num_restarts", [1, 2])
@pytest.mark.parametrize("label", [0, 3])
def test_an_image_of_one_colour_stays_an_image(num_restarts, label):
    """Fault 3: it became NaN, and was robust or not as its label was 0 or another."""
    images = IMAGES.at[2].set(0.0)
    labels = LABELS.at[2].set(label)
    options = {"eps": 0.1, "step_size": 0.05, "num_steps": 3, "random_start": num_restarts > 1}
    adversarial = pgd(KEY, standardised, images, labels, num_restarts=num_restarts, **options)
    assert np.isfinite(adversarial).all()
    assert np.abs(adversarial - images).max() <= 0.1 + 1e-7
    others = jnp.array([0, 1, 3, 4, 5, 6, 7])
    alone = pgd(
        KEY, standardised, images[others], labels[others], example_ids=others,
        num_restarts=num_restarts, **options,
    )  # fmt: skip
    np.testing.assert_array_equal(adversarial[others], alone)


def test_one_bad_draw_is_left_out_of_the_mean_gradient():
    def sometimes(key, images):
        return jax.lax.cond(jax.random.bernoulli(key), nan_gradient, LOGITS_FN, key, images)

    def objective(logits):
        return margin(logits, LABELS)

    noise = Noise(16, 1, "loss")
    found = expected_value_and_gradient(KEY, sometimes, objective, objective, IMAGES, noise)
    plain = expected_value_and_gradient(KEY, LOGITS_FN, objective, objective, IMAGES, noise)
    good = 1 - np.asarray(found.nonfinite)[:, None, None, None] / 16
    assert (found.nonfinite > 0).all()
    assert (found.nonfinite < 16).all()
    np.testing.assert_allclose(found.gradient, good * plain.gradient, rtol=1e-5)


def test_autoattack_names_gradients_that_are_not_finite():
    found = run_autoattack(nan_gradient, IMAGES, LABELS)
    assert "gradients of 8 of 8 images were NaN" in found.flags["nonfinite_gradient"]
    assert (found.nonfinite > 0).all()
    assert "zero_gradient" not in found.flags


def test_differences_that_are_not_finite_count_as_zero():
    found = nes(
        KEY, nan_beyond(0.01), IMAGES, LABELS, eps=0.1, step_size=0.005, num_queries=30,
        samples_per_gradient=4, sigma=0.1, loss="margin",
    )  # fmt: skip
    assert np.isfinite(found.images).all()
    assert np.isfinite(found.memory.velocity).all()
    assert (found.nonfinite > 0).all()


def test_a_black_box_that_answers_nan_is_misclassified():
    def predict(queries):
        answer = np.eye(5)[np.asarray(LABELS)[np.arange(len(queries)) % 8]]
        answer[::2] = np.nan
        return answer

    found = square(KEY, BlackBox(predict), IMAGES, LABELS, eps=0.0, num_queries=1)
    np.testing.assert_array_equal(found.success, np.arange(8) % 2 == 0)
    np.testing.assert_array_equal(found.queries, 1)


def test_a_mean_softmax_with_a_bad_pass_predicts_nothing():
    def sometimes(key, images):
        return jnp.where(jax.random.bernoulli(key, 0.2), jnp.nan, LOGITS_FN(key, images))

    mean = expected_logits(KEY, sometimes, IMAGES, Noise(30, 1, "softmax"))
    np.testing.assert_array_equal(predicted_class(mean), -1)


def test_logits_that_depend_on_the_batch_are_named():
    def batch_statistics(key, images):
        centred = images - images.mean(axis=0)
        return LOGITS_FN(key, centred)

    found = run_autoattack(batch_statistics, IMAGES, LABELS)
    assert "change with the rest of their batch" in found.flags["depends_on_batch"]
    assert not probe(KEY, LOGITS_FN, IMAGES, LABELS).depends_on_batch.any()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_tied_logits_in_half_precision_have_finite_losses(dtype):
    tied = jnp.zeros((2, 5), dtype)
    assert np.isfinite(dlr(tied, jnp.array([0, 1]))).all()
    for loss in LOSSES.values():
        assert loss(tied, jnp.array([0, 1])).dtype == jnp.float32


def test_misclassified_images_are_successes_at_once():
    """Fault 26: at eps 0 a model with 0 % accuracy looked robust."""
    wrong = (LABELS + 1) % 5
    found = run("fab", LOGITS_FN, IMAGES, wrong, eps=0.0, num_targets=4, early_stop=False)
    assert found.success.all()
    np.testing.assert_array_equal(found.memory.distance, 0)
    np.testing.assert_array_equal(found.queries, 1)
    np.testing.assert_array_equal(found.images, IMAGES)
    ascent = run("apgd", LOGITS_FN, IMAGES, wrong, eps=0.0, num_targets=0)
    assert ascent.success.all()
    np.testing.assert_array_equal(ascent.queries, 1)
    right = run("fab", LOGITS_FN, IMAGES, LABELS, eps=0.0, num_targets=4)
    assert not right.success.any()
    np.testing.assert_array_equal(right.queries, 2 * 3 * 4)
