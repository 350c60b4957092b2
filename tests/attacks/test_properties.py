"""Properties of all attacks, on random inputs and on degenerate models.

Each combination of shapes and static arguments compiles, so these come from a short list per
attack. Traced arguments vary freely.
"""

import inspect
import random
import zlib
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from calls import BLACK_BOX, FUNCTIONS, RESUMABLE, images_of, patch_stages
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from jaxadv.attacks import ATTACKS, AttackResult
from jaxadv.attacks.ensemble import CLEAN, ROBUST
from jaxadv.core.logits import predicted_class
from jaxadv.core.losses import LOSSES

pytestmark = pytest.mark.slow  # compiles much

NUM_CASES = 60  # per attack
ULP = float(np.finfo(np.float32).eps)
DETERMINISTIC = settings(
    derandomize=True,
    deadline=None,
    max_examples=NUM_CASES,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


@contextmanager
def without_type_checks():
    """Disable jaxtyping, as for users: the type checks of the tests would reject more."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


# --- models: one compilation per program, for all weights


class Weights(NamedTuple):
    matrix: jax.Array
    bias: jax.Array
    scale: jax.Array  # 0: constant logits; 1e30: saturated
    threshold: jax.Array  # logits are NaN if the mean of an image is above it


def affine(weights, key, images):
    flat = images.reshape(len(images), len(weights.matrix)) - 0.5
    logits = weights.scale * (flat @ weights.matrix) + weights.bias
    bad = images.mean(axis=(1, 2, 3)) > weights.threshold
    return jnp.where(bad[:, None], jnp.nan, logits)


def kinked(weights, key, images):
    """Finite logits whose gradient is NaN if a pixel is at most 0.5."""
    kink = 0 * jnp.sqrt(jnp.maximum(images - 0.5, 0)).sum(axis=(1, 2, 3))
    return affine(weights, key, images) + kink[:, None]


def standardised(weights, key, images):
    """Logits are NaN for a constant image."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = jnp.sqrt(((images - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True))
    return affine(weights, key, (images - mean) / deviation + 0.5)


def stabilised(weights, key, images):
    """Logits are finite for a constant image, but their gradient is NaN."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = jnp.sqrt(((images - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True))
    return affine(weights, key, (images - mean) / (deviation + 0.01) + 0.5)


def half(weights, key, images):
    """Logits are bfloat16."""
    return affine(weights, key, images).astype(jnp.bfloat16)


PROGRAMS = {fn.__name__: fn for fn in (affine, kinked, standardised, stabilised, half)}
evaluate = {name: jax.jit(fn) for name, fn in PROGRAMS.items()}
SCALES = [1.0, 1.0, 1.0, 30.0, 0.0, 1e4, 1e20, 1e30, 3e36]
INFINITIES = [0.0] * 8 + [np.inf, -np.inf]
THRESHOLDS = [2.0, 2.0, 2.0, 0.55, 0.5, -1.0]


def make_weights(case, pixels, num_classes):
    generator = np.random.default_rng(case["seed"])
    bias = generator.normal(size=num_classes)
    bias[0] += case["infinity"]
    return Weights(
        jnp.asarray(generator.normal(size=(pixels, num_classes)), jnp.float32),
        jnp.asarray(bias, jnp.float32),
        jnp.float32(case["scale"]),
        jnp.float32(case["threshold"]),
    )


# --- shapes and static arguments

SHARED = {
    "height": range(1, 9),
    "width": [3, 1, 8, 5, 2, 7, 4, 6],
    "channels": range(1, 5),
    "batch": [3, 1, 4, 2, 0],
    "num_classes": [3, 2, 5, 4],
    "program": list(PROGRAMS),
}
NORMS = {"norm": ["linf", "l2", "l1"]}
TARGETED = {"targeted": [False, True, False]}
OPTIONS: dict[str, dict[str, Any]] = {
    "fgsm": {**NORMS, **TARGETED, "loss": list(LOSSES), "noise_average": ["loss", "softmax"]},
    "n_fgsm": {"loss": list(LOSSES)},
    "pgd": {
        "norm": ["linf", "l2", "l1", "l0"], "loss": [*LOSSES, "kl"], "num_restarts": [2, 1],
        "noise_average": ["loss", "softmax"], "num_odi_steps": [0, 2],
    },
    "mi_fgsm": {
        **NORMS, **TARGETED, "loss": list(LOSSES), "nesterov": [False, True], "kernel_size": [1, 3],
        "diversity": [0.0, 0.5, 1.0], "noise_average": ["loss", "softmax"],
    },
    "apgd": {
        **NORMS, "loss": list(LOSSES), "num_targets": [0, 1], "num_restarts": [1, 2],
        "num_steps": [3], "num_odi_steps": [0, 1], "noise_average": ["loss", "softmax"],
    },
    "fab": {
        **NORMS, "num_targets": [1, 0], "num_restarts": [1, 2], "early_stop": [True, True, False],
        "num_steps": [3],
    },
    "fmn": {"norm": ["linf", "l2", "l1", "l0"], **TARGETED},
    "ddn": {"norm": ["l2"], **TARGETED},
    "cw": {"norm": ["l2"], **TARGETED},
    "deepfool": {**NORMS},
    "nes": {
        **NORMS, **TARGETED, "loss": ["probability", "margin", "cross_entropy"],
        "directions": ["normal", "rademacher"], "plateau_length": [0, 2],
        "early_stop": [True, True, False], "samples_per_gradient": [4],
    },
    "nes_label_only": {
        **NORMS, **TARGETED, "directions": ["normal", "rademacher"], "samples_per_gradient": [2],
        "label_samples": [2],
    },
    "hop_skip_jump": {
        "norm": ["l2", "linf"], **TARGETED, "early_stop": [True, False],
        "initial_samples": [2],
    },
    "rays": {**TARGETED, "early_stop": [True, False]},
    "sparse_rs": {"norm": ["l0"], **TARGETED},
    "square": {**NORMS, **TARGETED},
    "random_search": {**NORMS, **TARGETED},
    "autoattack": {**NORMS, "version": ["standard", "rand"]},
}  # fmt: skip
NUM_COMPILED = {"autoattack": 5}  # each runs several attacks; 10 otherwise
SHORT = {
    "standard": {
        "apgd_ce": {"attack": "apgd", "loss": "cross_entropy", "num_steps": 3},
        "apgd_t": {"attack": "apgd", "loss": "dlr", "num_targets": 9, "num_steps": 2},
        "fab_t": {"attack": "fab", "num_targets": 9, "num_steps": 3},
        "square": {"attack": "square", "num_queries": 12},
    },
    "rand": {
        "apgd_ce": {
            "attack": "apgd", "loss": "cross_entropy", "num_steps": 3, "num_noise_samples": 2
        },
    },
}  # fmt: skip


def compilations(name):
    """Combinations that contain every value of every axis, with random values of the others."""
    generator = random.Random(name)
    axes = SHARED | OPTIONS[name]
    number = NUM_COMPILED.get(name, 10)
    columns = []
    for values in axes.values():
        column = [values[i % len(values)] for i in range(max(number, len(values)))]
        generator.shuffle(column)
        columns.append(column[:number])
    return [dict(zip(axes, row, strict=True)) for row in zip(*columns, strict=True)]


COMPILED = {name: compilations(name) for name in OPTIONS}


# --- traced values

IMAGES = {
    "any": lambda generator, shape: generator.uniform(0, 1, shape),
    "middle": lambda generator, shape: generator.uniform(0.4, 0.6, shape),
    "corners": lambda generator, shape: generator.integers(0, 2, shape),
    "black": lambda generator, shape: np.zeros(shape),
    "grey": lambda generator, shape: np.full(shape, 0.5),
    "white": lambda generator, shape: np.ones(shape),
    # The rounding error of an image that was normalised and denormalised.
    "rounded": lambda generator, shape: generator.choice([-1e-7, 0.3, 1 + 1e-7], shape),
}
DTYPES = [np.float32, jnp.float16, jnp.bfloat16, np.float64]


def make_case(seed):
    """Sample independent values: hypothesis often makes all of them degenerate at once."""
    generator = np.random.default_rng(seed)

    def one_of(values):
        return values[generator.integers(len(values))]

    return {
        "seed": seed,
        "compiled": int(generator.integers(10)),
        "eps": one_of([8 / 255, 0.1, 0.1, 0.3, 0.0, 1e-12, 1.0, float(generator.uniform(0, 10))]),
        "step": one_of([0.25, 1.0, 0.0, 4.0]),  # share of eps
        "images": one_of(["any", "middle", *IMAGES]),
        "dtype": one_of(DTYPES),
        "numpy": bool(generator.integers(2)),
        "labels": one_of(["right", "right", "any"]),
        "num_queries": int(generator.integers(25)),
        "num_samples": int(generator.integers(1, 3)),
        "scale": one_of(SCALES),
        "infinity": one_of(INFINITIES),
        "threshold": one_of(THRESHOLDS),
    }


CASES = st.integers(0, 2**32 - 1).map(make_case)


def margins(logits, classes):
    """Largest other logit minus that of the class; infinite where a logit is not finite."""
    rows = np.arange(len(logits))
    finite = np.isfinite(logits).all(axis=1)
    logits = np.where(finite[:, None], logits, 0)
    others = logits.copy()
    others[rows, classes] = -np.inf
    return np.where(finite, others.max(axis=1) - logits[rows, classes], np.inf)


class Problem(NamedTuple):
    images: Any  # as passed to the attack
    clean: np.ndarray  # after its casts and clips
    labels: Any
    targets: Any
    weights: Weights
    static: dict[str, Any]
    program: str

    def logits(self, images):
        return evaluate[self.program](self.weights, jax.random.key(0), jnp.asarray(images))

    def certain_results(self, images, targeted=False):
        """Whether images are certain successes or failures; rounding decides on the rest."""
        logits = np.asarray(self.logits(images), np.float64)
        gaps = margins(logits, np.asarray(self.targets if targeted else self.labels))
        unit = 0.05 if self.program == "half" else 2e-5
        terms = np.abs(np.asarray(self.weights.matrix, np.float64)).sum(axis=0).max()
        rounding = unit * (terms * float(self.weights.scale) + 3)
        means = images.mean(axis=(1, 2, 3), dtype=np.float64)
        is_certain = np.abs(means - float(self.weights.threshold)) > 1e-6
        if self.program in ("standardised", "stabilised"):
            # The threshold applies to the standardised image, whose mean is 0.5 up to rounding. The
            # rounding errors of an almost constant image are divided by almost 0.
            is_certain = np.full(len(images), float(self.weights.threshold) != 0.5)
            is_certain &= np.abs(images - means[:, None, None, None]).max(axis=(1, 2, 3)) > 1e-2
        is_other, is_class = is_certain & (gaps > rounding), is_certain & (gaps < -rounding)
        return (is_class, is_other) if targeted else (is_other, is_class)


def make_problem(name, case):
    static = dict(COMPILED[name][case["compiled"] % len(COMPILED[name])])
    shape = tuple(static.pop(axis) for axis in ("batch", "height", "width", "channels"))
    num_classes, program = static.pop("num_classes"), static.pop("program")
    generator = np.random.default_rng(case["seed"])
    images = IMAGES[case["images"]](generator, shape).astype(case["dtype"])
    clean = np.clip(np.asarray(images, np.float32), 0, 1)
    weights = make_weights(case, int(np.prod(shape[1:])), num_classes)
    labels = generator.integers(0, num_classes, shape[0], np.int32)
    problem = Problem(images, clean, None, None, weights, static, program)
    if case["labels"] == "right":
        labels = np.asarray(problem.logits(clean).argmax(axis=1), np.int32)  # 0 for NaN
    targeted = static.pop("targeted", False)
    targets = (labels + generator.integers(1, num_classes, shape[0], np.int32)) % num_classes
    return problem._replace(
        labels=jnp.asarray(labels), targets=jnp.asarray(targets) if targeted else None
    )


def arguments_of(name, case, problem):
    eps = case["eps"]
    arguments = dict(problem.static)
    measures_distance = name in ATTACKS and ATTACKS[name].measures_distance
    arguments["eps"] = None if measures_distance and case["seed"] % 8 == 0 else eps
    if name in ("pgd", "mi_fgsm", "n_fgsm", "nes"):
        arguments["step_size"] = case["step"] * eps
    if name in ("pgd", "mi_fgsm"):
        arguments["num_steps"] = case["num_queries"] % 4
    if name in ("fmn", "ddn", "cw", "deepfool"):
        arguments["num_steps"] = 1 + case["num_queries"] % 4
    if name == "mi_fgsm":
        arguments["decay"] = min(case["step"], 1.0)
        arguments["nesterov"] &= arguments["norm"] == "linf"
    if arguments.get("norm") in ("l1", "l0"):
        arguments.pop("num_odi_steps", None)
    if name in RESUMABLE:
        arguments["num_queries"] = case["num_queries"]
    if name in (*BLACK_BOX, "apgd", "fgsm", "pgd", "mi_fgsm"):
        arguments["num_noise_samples"] = case["num_samples"]
    if problem.targets is not None:
        arguments["targets"] = problem.targets
    return arguments


def check_ball_and_box(name, problem, images, arguments):
    assert images.shape == problem.clean.shape
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert ((images >= 0) & (images <= 1)).all()
    if arguments["eps"] is None or not images.size:
        return
    eps = float(np.float32(arguments["eps"]))
    delta = images.astype(np.float64) - problem.clean
    if arguments.get("norm") == "l2":
        length = np.sqrt((delta**2).sum(axis=(1, 2, 3)))
        # Each pixel is rounded to half a unit, and so are a few operations on the norm.
        rounding = ULP / 2 * np.sqrt(delta[0].size) + 4 * ULP * eps
    elif arguments.get("norm") == "l0":
        length, rounding = (delta != 0).any(axis=3).sum(axis=(1, 2)), 0
    elif arguments.get("norm") == "l1":
        length = np.abs(delta).sum(axis=(1, 2, 3))
        rounding = ULP / 2 * delta[0].size + 4 * ULP * eps
    else:
        if name == "n_fgsm":
            eps = 2 * eps + float(np.float32(arguments["step_size"]))
        length = np.abs(delta).max(axis=(1, 2, 3))
        rounding = ULP * max(1, eps)
    assert length.max() <= eps + rounding


def check_search_result(name, problem, found, arguments):
    limit = arguments.get("num_queries")
    if limit is None:
        limit = ATTACKS[name].max_queries(arguments)
    num_samples = arguments.get("num_noise_samples", 1)
    targeted = problem.targets is not None
    for count in (found.queries, found.gradients, found.nonfinite, found.steps):
        assert (count >= 0).all()
    assert (found.queries <= limit).all()
    assert not np.isnan(found.margins).any()
    images = np.asarray(found.images)
    _, not_reached = problem.certain_results(images, targeted)
    success = np.asarray(found.success)
    assert not (success & not_reached).any()
    # APGD begins at a random point, and NES without early_stop only checks its last image.
    checks_clean = name != "apgd" and arguments.get("early_stop", True) and limit >= num_samples
    wrong, _ = problem.certain_results(problem.clean, targeted)
    if checks_clean or (name == "apgd" and arguments["eps"] == 0 and limit >= num_samples):
        assert not (~success & wrong).any()
        # A row with a nonfinite logit predicts no class.
        lost = predicted_class(problem.logits(problem.clean)) == -1
        if not targeted and problem.program != "standardised":
            assert success[np.asarray(lost) & wrong].all()
    if not targeted and arguments.get("early_stop", True) and name != "apgd":
        still_right = problem.certain_results(images)[1]
        assert not (
            still_right & problem.certain_results(problem.clean)[0] & (limit >= num_samples)
        ).any()


def check_autoattack(problem, found):
    images = found.images
    wrong, right = problem.certain_results(problem.clean)
    fooled = found.broken_by != ROBUST
    assert (found.broken_by[wrong] == CLEAN).all()
    assert (found.broken_by[right] != CLEAN).all()
    assert not (fooled & problem.certain_results(images)[1]).any()
    np.testing.assert_array_equal(images[~fooled], problem.clean[~fooled])
    np.testing.assert_array_equal(
        images[found.broken_by == CLEAN], problem.clean[found.broken_by == CLEAN]
    )
    assert list(found.accuracies().values()) == sorted(found.accuracies().values(), reverse=True)
    lost = np.asarray(predicted_class(problem.logits(problem.clean)) == -1)
    assert "nonfinite_logits" in found.flags or not (lost & wrong).any()
    assert ("nonfinite_logits" in found.flags) == np.isinf(found.margins).any()


def check(name, case):
    problem = make_problem(name, case)
    arguments = arguments_of(name, case, problem)
    model = partial(PROGRAMS[problem.program], problem.weights)
    key = jax.random.key(case["seed"] % 1000)
    with without_type_checks() if case["numpy"] else nullcontext():
        as_given = np.asarray if case["numpy"] else jnp.asarray
        images, labels = as_given(problem.images), as_given(problem.labels)
        found = FUNCTIONS[name](key, model, images, labels, **arguments)
    images = np.asarray(images_of(found) if name != "autoattack" else found.images)
    check_ball_and_box(name, problem, images, arguments)
    if isinstance(found, AttackResult):
        check_search_result(name, problem, found, arguments)
    elif name == "autoattack":
        check_autoattack(problem, found)
    elif arguments["eps"] == 0 and name != "n_fgsm":
        np.testing.assert_array_equal(images, problem.clean)


# --- invalid arguments

REQUIRED = {
    "fgsm": {},
    "n_fgsm": {"step_size": 0.1},
    "pgd": {"step_size": 0.1, "num_steps": 2},
    "mi_fgsm": {"step_size": 0.1, "num_steps": 2},
    "apgd": {"num_steps": 3},
    "fab": {"num_steps": 3, "num_targets": 1},
    "fmn": {"num_steps": 3},
    "ddn": {"num_steps": 3},
    "cw": {"num_steps": 2, "num_searches": 2},
    "deepfool": {"num_steps": 3},
    "nes": {"step_size": 0.1, "num_queries": 9, "samples_per_gradient": 4},
    "nes_label_only": {"num_queries": 9, "samples_per_gradient": 2, "label_samples": 2},
    "hop_skip_jump": {"num_queries": 9, "initial_samples": 2},
    "rays": {"num_queries": 9},
    "sparse_rs": {"num_queries": 9},
    "square": {"num_queries": 9},
    "random_search": {"num_queries": 9},
    "autoattack": {},
}
COUNTS = [0, -1, 1.5, True, "3", 2**31]
STEPS = [-1, 1.5, True, "3", 2**31]
RADII = [-0.1, float("nan"), float("inf"), 1e10, "0.1", True, (0.1, 0.2, 0.3), -1e-9]
INVALID_VALUES = {
    "eps": RADII,
    "step_size": RADII,
    "min_step_size": RADII,
    "label_radius": RADII,
    "num_restarts": COUNTS,
    "num_searches": COUNTS,
    "initial_samples": COUNTS,
    "constant": [0, -0.1, float("nan"), float("inf")],
    "num_noise_samples": COUNTS,
    "noise_chunk_size": COUNTS,
    "label_samples": COUNTS,
    "batch_size": COUNTS,
    "num_queries": STEPS,
    "plateau_length": STEPS,
    "num_steps": STEPS,
    "num_odi_steps": STEPS,
    "num_targets": [*STEPS, 3, 9],  # with 3 classes
    "chunk_size": [1, 0, -2, 1.5],
    "samples_per_gradient": [1, 0, 3, 2.0],
    "sigma": [0, -0.1, float("nan"), float("inf")],
    "momentum": [-0.1, 1, float("nan")],
    "overshoot": RADII,
    "decay": [-0.1, 1.1, float("nan")],
    "diversity": [-0.1, 1.1, float("nan")],
    "kernel_size": [2, 0, -1, 3.0],
    "nesterov": ["no", 2],
    "share": [-0.1, 1.1, float("nan")],
    "norm": ["l3", 2, "Linf"],
    "loss": ["hinge", 3, ""],
    "directions": ["uniform"],
    "noise_average": ["logits"],
    "version": ["fast"],
    "early_stop": ["no", 2],
}
BATCH, CLASSES = 2, 3


def invalid_arguments(name):
    grey = jnp.full((BATCH, 2, 3, 1), 0.5)
    images = {
        "below": grey - 0.6, "above": grey + 0.6, "NaN": grey * jnp.nan, "bytes": grey.astype(int),
    }  # fmt: skip
    classes = [
        jnp.array([0, CLASSES]), jnp.array([-1, 0]), jnp.eye(BATCH, CLASSES), jnp.zeros(BATCH),
        jnp.zeros(BATCH + 1, int),
    ]  # fmt: skip
    bad = {"images": list(images.values()), "labels": classes}
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    if "targets" in parameters:
        bad["targets"] = [*classes, jnp.array([0, 1])]  # the last ones equal the labels
    if "example_ids" in parameters:
        bad["example_ids"] = [jnp.zeros(BATCH, int), jnp.zeros(BATCH + 1, int), jnp.ones(BATCH)]
    return bad | {key: values for key, values in INVALID_VALUES.items() if key in parameters}


@pytest.mark.parametrize("name", REQUIRED)
def test_invalid_arguments_raise_one_line_with_their_name(name):
    cases = [(key, value) for key, values in invalid_arguments(name).items() for value in values]

    def logits_fn(key, images):
        return images.reshape(len(images), 6)[:, :CLASSES]

    for argument, value in cases:
        arrays = {"images": jnp.full((BATCH, 2, 3, 1), 0.5), "labels": jnp.array([0, 1])}
        arguments = {"eps": 0.1, **REQUIRED[name], **arrays, argument: value}
        with without_type_checks(), pytest.raises(ValueError, match=argument) as raised:
            FUNCTIONS[name](jax.random.key(0), logits_fn, **arguments)
        assert "\n" not in str(raised.value), (argument, value)
    print(f"{name}: {len(cases)} invalid arguments")
    assert len(cases) >= 30


@pytest.fixture(autouse=True)
def short_versions(monkeypatch):
    patch_stages(monkeypatch, SHORT)


@pytest.mark.parametrize("name", OPTIONS)
def test_attacks_have_the_shared_properties(name):
    cases, compiled = 0, Counter()

    @seed(zlib.crc32(name.encode()))  # different cases for each attack
    @DETERMINISTIC
    @given(CASES)
    def check_all(case):
        nonlocal cases
        check(name, case)
        cases += 1
        compiled[case["compiled"] % len(COMPILED[name])] += 1

    check_all()
    print(f"{name}: {cases} cases, {len(compiled)} compilations")
    assert cases >= NUM_CASES  # nothing was skipped
    assert len(compiled) >= 0.7 * len(COMPILED[name])


def test_all_attacks_are_tested():
    assert set(OPTIONS) == set(FUNCTIONS)
