"""Attack specifications agree with the attacks that they describe."""

import inspect
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS
from jaxtyping import ArrayLike
from linear_model import LOGITS_FN, examples

from jaxadv.attacks import ATTACKS, apgd, fab
from jaxadv.attacks.apgd import _apgd
from jaxadv.attacks.cw import _cw
from jaxadv.attacks.ddn import _ddn
from jaxadv.attacks.deepfool import _deepfool
from jaxadv.attacks.fab import _fab
from jaxadv.attacks.fmn import _fmn
from jaxadv.attacks.hop_skip_jump import _hop_skip_jump
from jaxadv.attacks.mi_fgsm import _mi_fgsm
from jaxadv.attacks.nes import _nes
from jaxadv.attacks.nes_label_only import _nes_label_only
from jaxadv.attacks.pgd import _pgd, fgsm_result, pgd_result
from jaxadv.attacks.random_search import _random_search
from jaxadv.attacks.rays import _rays
from jaxadv.attacks.sparse_rs import _sparse_rs
from jaxadv.attacks.square import _square

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
IMAGES, _ = examples(n=4, low=0.3, high=0.7)
LABELS = LOGITS_FN(None, IMAGES).argmax(axis=1)
KERNELS = {
    "fgsm": _pgd,
    "pgd": _pgd,
    "mi_fgsm": _mi_fgsm,
    "apgd": _apgd,
    "fab": _fab,
    "fmn": _fmn,
    "ddn": _ddn,
    "cw": _cw,
    "deepfool": _deepfool,
    "nes": _nes,
    "nes_label_only": _nes_label_only,
    "hop_skip_jump": _hop_skip_jump,
    "rays": _rays,
    "sparse_rs": _sparse_rs,
    "square": _square,
    "random_search": _random_search,
}
every_attack = pytest.mark.parametrize("name", ATTACKS)
every_kernel = pytest.mark.parametrize("name", KERNELS)


def robust(key, images):
    """A model that classifies all images correctly, with a gradient."""
    return 1e-3 * LOGITS_FN(key, images) + 10 * jax.nn.one_hot(LABELS, 5)


def arguments_of(name):
    return {**ATTACKS[name].defaults, **CALLS[name]}


def test_every_attack_with_a_kernel_is_tested():
    assert {*KERNELS, "autoattack"} == set(ATTACKS)


@every_attack
def test_traced_arguments_are_those_annotated_as_arrays(name):
    arrays = [
        parameter.name
        for parameter in inspect.signature(ATTACKS[name].attack_fn).parameters.values()
        if all(kind in get_args(parameter.annotation) for kind in get_args(ArrayLike))
    ]
    assert sorted(ATTACKS[name].traced) == sorted(arrays)


@every_attack
def test_flags_agree_with_the_signature(name):
    spec = ATTACKS[name]
    parameters = inspect.signature(spec.attack_fn).parameters
    assert spec.resumable == {"num_queries", "resume"}.issubset(parameters)
    assert spec.takes_example_ids == ("example_ids" in parameters)
    assert set(spec.traced) <= set(spec.defaults)


@every_kernel
def test_traced_arguments_do_not_compile_again(name):
    spec, arguments = ATTACKS[name], arguments_of(name)
    traced = {key: arguments[key] for key in spec.traced if arguments[key] is not None}
    attack = partial(spec.run, KEY, LOGITS_FN, IMAGES, LABELS)
    attack(**arguments)
    before = KERNELS[name].__wrapped__._cache_size()
    for key, value in traced.items():
        other = value + 1 if isinstance(value, int) else value / 2
        attack(**{**arguments, key: other})
    assert KERNELS[name].__wrapped__._cache_size() == before
    jax.eval_shape(lambda traced: attack(**{**arguments, **traced}), traced)


@every_kernel
def test_static_arguments_cannot_be_traced(name):
    spec, arguments = ATTACKS[name], arguments_of(name)
    static = [
        key
        for key, value in arguments.items()
        if isinstance(value, int | float) and key not in spec.traced
    ]
    for key in static:

        def attack(value, key=key):
            return spec.run(KEY, LOGITS_FN, IMAGES, LABELS, **{**arguments, key: value})

        with pytest.raises(Exception):  # noqa: B017, PT011  (JAX raises several types)
            jax.eval_shape(attack, arguments[key])


@every_kernel
def test_max_queries_is_the_cost_on_a_robust_model(name):
    spec, arguments = ATTACKS[name], arguments_of(name)
    if "num_noise_samples" in arguments:
        arguments["num_noise_samples"] = 2
    if spec.resumable and name not in ("apgd", "fab"):
        arguments["num_queries"] = 4 * (arguments.get("samples_per_gradient", 0) + 2) + 2
    result = spec.run(KEY, robust, IMAGES, LABELS, **arguments)
    cost = spec.max_queries({key: value for key, value in arguments.items() if value is not None})
    if not spec.resumable:
        np.testing.assert_array_equal(result.queries, cost)
    elif name == "nes_label_only":
        assert (result.queries <= cost).all()
    else:
        assert not result.success.any()
        assert (result.queries <= cost).all()
        assert (result.queries > cost - 2 - arguments.get("samples_per_gradient", 0)).all()
    if spec.returns_clean:
        np.testing.assert_array_equal(result.images, IMAGES)
    if spec.measures_distance:
        assert result.extras.distance.shape == (4,)
    assert (result.gradients > 0).all() == spec.uses_gradients


def test_max_queries_uses_the_defaults_of_missing_arguments():
    assert ATTACKS["fgsm"].max_queries({}) == 1
    assert ATTACKS["pgd"].max_queries({"num_steps": 7, "num_restarts": 2}) == 14
    assert ATTACKS["apgd"].max_queries({}) == 101
    assert ATTACKS["apgd"].max_queries({"num_targets": 9, "num_noise_samples": 2}) == 1818
    assert ATTACKS["fab"].max_queries({}) == 1800
    assert ATTACKS["fab"].max_queries({"num_targets": 0, "num_restarts": 5}) == 1000
    assert ATTACKS["square"].max_queries({"num_queries": 5000}) == 5000
    found = apgd(KEY, robust, IMAGES, LABELS, eps=0.01, num_steps=3)
    np.testing.assert_array_equal(found.queries, ATTACKS["apgd"].max_queries({"num_steps": 3}))
    found = fab(KEY, robust, IMAGES, LABELS, eps=0.01, num_steps=3, num_targets=2)
    options = {"num_steps": 3, "num_targets": 2}
    np.testing.assert_array_equal(found.queries, ATTACKS["fab"].max_queries(options))


def test_attacks_of_fixed_cost_have_no_success_checks():
    options = {"eps": 0.1, "num_noise_samples": 2}
    steps = {"step_size": 0.05, "num_steps": 3, "num_restarts": 4}
    for result, num_steps, gradients in (
        (pgd_result(KEY, LOGITS_FN, IMAGES, LABELS, **options, **steps), 3, 24),
        (fgsm_result(KEY, LOGITS_FN, IMAGES, LABELS, **options), 1, 2),
    ):
        assert not result.success.any()
        np.testing.assert_array_equal(result.queries, gradients)
        np.testing.assert_array_equal(result.gradients, gradients)
        np.testing.assert_array_equal(result.steps, num_steps)
        np.testing.assert_array_equal(result.margins, jnp.full(4, -jnp.inf))
        assert result.extras == ()


def test_attacks_that_return_images_have_a_signature_that_says_so():
    for name in ("fgsm", "pgd", "mi_fgsm"):
        spec = ATTACKS[name]
        images = spec.attack_fn(KEY, LOGITS_FN, IMAGES, LABELS, **CALLS[name])
        np.testing.assert_array_equal(
            images, spec.run(KEY, LOGITS_FN, IMAGES, LABELS, **CALLS[name]).images
        )
        public, run = (inspect.signature(fn) for fn in (spec.attack_fn, spec.run))
        assert public.parameters == run.parameters
        assert public.return_annotation is not run.return_annotation
