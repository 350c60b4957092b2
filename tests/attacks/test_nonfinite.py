"""NaN and infinite logits count as misclassified; NaN and infinite gradients are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, images_of, run, run_autoattack
from linear_model import LOGITS_FN, apply, examples

from jaxadv.attacks import AttackResult, BlackBox, nes, pgd, square
from jaxadv.attacks.autoattack_flags import probe
from jaxadv.attacks.eot import Noise, expected_logits, expected_value_and_gradient
from jaxadv.attacks.pgd import pgd_result
from jaxadv.core.logits import finite_logits, predicted_class
from jaxadv.core.losses import LOSSES, dlr, margin

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
IMAGES, _ = examples(n=8, low=0.3, high=0.7)
LABELS = LOGITS_FN(None, IMAGES).argmax(axis=1).astype(jnp.int32)  # all correct
every_attack = pytest.mark.parametrize("name", CALLS)


def all_nan(key, images):
    return LOGITS_FN(key, images) * jnp.nan


def all_infinite(key, images):
    return LOGITS_FN(key, images) + jnp.inf


def nan_beyond(radius):
    """NaN if a pixel is farther than `radius` from the clean image, otherwise a large margin."""

    def logits_fn(key, images):
        far = jnp.abs(images - IMAGES).max(axis=(1, 2, 3)) > radius
        confident = 100 * jax.nn.one_hot(LABELS, 5) + LOGITS_FN(key, images)
        return jnp.where(far[:, None], jnp.nan, confident)

    return logits_fn


def nan_gradient(key, images):
    """Finite logits whose gradient is NaN if a pixel is below 0.5."""
    hidden = 0 * jnp.sqrt(jnp.maximum(images - 0.5, 0)).sum(axis=(1, 2, 3))
    return LOGITS_FN(key, images) + hidden[:, None]


def standardised(key, images):
    """Per-image standardisation, which divides by 0 for a constant image."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = jnp.sqrt(((images - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True))
    return apply(np.asarray(WEIGHTS), key, (images - mean) / jnp.maximum(deviation, 1e-3))


WEIGHTS = np.random.default_rng(0).normal(size=(48, 5))


def test_rows_with_a_nonfinite_logit_are_misclassified_and_predict_no_class():
    logits = jnp.array([[9.0, 0, 0], [9, jnp.nan, 0], [9, jnp.inf, 0], [9, -jnp.inf, 0]])
    labels = jnp.zeros(4, jnp.int32)
    np.testing.assert_array_equal(margin(logits, labels), [-9, jnp.inf, jnp.inf, jnp.inf])
    np.testing.assert_array_equal(predicted_class(logits), [0, -1, -1, -1])
    np.testing.assert_array_equal(jnp.isnan(finite_logits(logits)).all(axis=1), [0, 1, 1, 1])
    # One nonfinite forward pass of a random model makes the mean nonfinite.
    keys = iter([logits, logits[:1].repeat(4, axis=0)])
    mean = jax.nn.logsumexp(
        jnp.stack([jax.nn.log_softmax(finite_logits(part)) for part in keys]), axis=0
    )
    np.testing.assert_array_equal(predicted_class(mean), [0, -1, -1, -1])


def test_huge_logits_have_finite_losses():
    logits = jnp.array([[3e38, -3e38, 0.0]])
    for loss in LOSSES.values():
        assert np.isfinite(loss(finite_logits(logits), jnp.array([0])))
    assert predicted_class(logits) == 0


@every_attack
@pytest.mark.parametrize("model", [all_nan, all_infinite])
def test_models_without_finite_logits_are_never_robust(name, model):
    found = run(name, model, IMAGES, LABELS)
    images = images_of(found)
    assert np.isfinite(images).all()
    assert (predicted_class(model(None, images)) != LABELS).all()
    if isinstance(found, AttackResult):
        assert found.success.all()
        # Label-only attacks have no margins.
        assert name == "nes_label_only" or np.isposinf(found.margins).all()


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_autoattack_counts_and_reports_nonfinite_logits(version):
    found = run_autoattack(all_nan, IMAGES, LABELS, version=version)
    assert found.accuracies()["clean"] == 0
    assert "The logits of 8 of 8 images" in found.flags["nonfinite_logits"]


@pytest.mark.parametrize("name", ["pgd", "apgd", "nes", "square", "random_search"])
def test_logits_that_become_nan_inside_the_ball_are_successes(name):
    changes = {"num_steps": 20} if name in ("pgd", "apgd") else {"num_queries": 60}
    model = nan_beyond(0.05)
    if name == "nes":
        changes["loss"] = "margin"  # its differences are larger than rounding errors
    found = run(name, model, IMAGES, LABELS, **changes)
    images = images_of(found)
    assert np.isfinite(images).all()
    assert (predicted_class(model(None, images)) == -1).all()
    if isinstance(found, AttackResult):
        assert found.success.all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "fab"])
def test_nonfinite_gradients_count_as_zero_and_are_counted(name, norm):
    found = run(name, nan_gradient, IMAGES, LABELS, norm=norm)
    images = images_of(found)
    assert np.isfinite(images).all()
    if name == "fgsm":
        np.testing.assert_array_equal(images, IMAGES)
    if isinstance(found, AttackResult):
        np.testing.assert_array_equal(found.nonfinite, found.gradients)
        assert (found.nonfinite[~found.success] > 0).all()


def test_pgd_counts_nonfinite_gradients():
    options = {"eps": 0.1, "step_size": 0.05, "num_steps": 3, "num_noise_samples": 2}
    counted = pgd_result(KEY, nan_gradient, IMAGES, LABELS, **options)
    np.testing.assert_array_equal(counted.nonfinite, 6)
    counted = pgd_result(KEY, LOGITS_FN, IMAGES, LABELS, **options)
    np.testing.assert_array_equal(counted.nonfinite, 0)


@pytest.mark.parametrize("num_restarts", [1, 2])
@pytest.mark.parametrize("label", [0, 3])
def test_constant_images_stay_finite(num_restarts, label):
    """Regression: they became NaN, and were then robust or not depending on the label."""
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


def test_nonfinite_noise_samples_count_as_zero_in_the_mean_gradient():
    def sometimes(key, images):
        return jax.lax.cond(jax.random.bernoulli(key), nan_gradient, LOGITS_FN, key, images)

    def objective(logits):
        return margin(logits, LABELS)

    noise = Noise(16, 1, "loss")
    found = expected_value_and_gradient(KEY, sometimes, objective, objective, IMAGES, noise)
    plain = expected_value_and_gradient(KEY, LOGITS_FN, objective, objective, IMAGES, noise)
    finite_share = 1 - np.asarray(found.nonfinite)[:, None, None, None] / 16
    assert (found.nonfinite > 0).all()
    assert (found.nonfinite < 16).all()
    np.testing.assert_allclose(found.gradient, finite_share * plain.gradient, rtol=1e-5)


def test_autoattack_reports_nonfinite_gradients():
    found = run_autoattack(nan_gradient, IMAGES, LABELS)
    assert "gradients of 8 of 8 images were NaN" in found.flags["nonfinite_gradient"]
    assert (found.nonfinite > 0).all()
    assert "zero_gradient" not in found.flags


def test_nonfinite_differences_count_as_zero():
    found = nes(
        KEY, nan_beyond(0.01), IMAGES, LABELS, eps=0.1, step_size=0.005, num_queries=30,
        samples_per_gradient=4, sigma=0.1, loss="margin",
    )  # fmt: skip
    assert np.isfinite(found.images).all()
    assert np.isfinite(found.extras.velocity).all()
    assert (found.nonfinite > 0).all()


def test_nan_answers_of_a_black_box_are_misclassified():
    def predict(queries):
        answer = np.eye(5)[np.asarray(LABELS)[np.arange(len(queries)) % 8]]
        answer[::2] = np.nan
        return answer

    found = square(KEY, BlackBox(predict), IMAGES, LABELS, eps=0.0, num_queries=1)
    np.testing.assert_array_equal(found.success, np.arange(8) % 2 == 0)
    np.testing.assert_array_equal(found.queries, 1)


def test_mean_softmax_with_a_nonfinite_forward_pass_predicts_no_class():
    def sometimes(key, images):
        return jnp.where(jax.random.bernoulli(key, 0.2), jnp.nan, LOGITS_FN(key, images))

    mean = expected_logits(KEY, sometimes, IMAGES, Noise(30, 1, "softmax"))
    np.testing.assert_array_equal(predicted_class(mean), -1)


def test_autoattack_reports_logits_that_depend_on_the_batch():
    def batch_statistics(key, images):
        centred = images - images.mean(axis=0)
        return LOGITS_FN(key, centred)

    found = run_autoattack(batch_statistics, IMAGES, LABELS)
    assert "depend on the rest of their batch" in found.flags["depends_on_batch"]
    assert not probe(KEY, LOGITS_FN, IMAGES, LABELS).depends_on_batch.any()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_tied_logits_in_half_precision_have_finite_losses(dtype):
    tied = jnp.zeros((2, 5), dtype)
    assert np.isfinite(dlr(tied, jnp.array([0, 1]))).all()
    for loss in LOSSES.values():
        assert loss(tied, jnp.array([0, 1])).dtype == jnp.float32


def test_misclassified_clean_images_are_successes_at_once():
    """Regression: at eps 0 a model without a correct prediction counted as robust."""
    wrong = (LABELS + 1) % 5
    found = run("fab", LOGITS_FN, IMAGES, wrong, eps=0.0, num_targets=4, early_stop=False)
    assert found.success.all()
    np.testing.assert_array_equal(found.extras.distance, 0)
    np.testing.assert_array_equal(found.queries, 1)
    np.testing.assert_array_equal(found.images, IMAGES)
    found = run("apgd", LOGITS_FN, IMAGES, wrong, eps=0.0, num_targets=0)
    assert found.success.all()
    np.testing.assert_array_equal(found.queries, 1)
    correct = run("fab", LOGITS_FN, IMAGES, LABELS, eps=0.0, num_targets=4)
    assert not correct.success.any()
    np.testing.assert_array_equal(correct.queries, 2 * 3 * 4)
