"""`jaxadv.evaluate` on models from outside of this project: closed forms, black boxes, errors."""

import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_classifier import Linear, make_problem, run_suite

import jaxadv
from jaxadv.core.types import UserError
from jaxadv.evaluation.attack_suites import SUITES, named_suite

PGD = {"pgd": {"attack": "pgd", "step_size": 0.02, "num_steps": 8}}
WEIGHTS, SPLIT, MARGINS = make_problem()
W, B = WEIGHTS["params"]["w"], WEIGHTS["params"]["b"]
IMAGES = SPLIT.images / np.float32(255)


def logits_fn(images):
    score = images.reshape(len(images), -1) @ W + B
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)


def probabilities(images):
    score = np.asarray(images).reshape(len(images), -1) @ W + B
    share = 1 / (1 + np.exp(-score))
    return np.stack([1 - share, share], axis=-1)


def evaluate(model=logits_fn, images=IMAGES, labels=SPLIT.labels, attacks=PGD, **changes):
    arguments = {"eps": 0.06, "progress": False, "batch_size": 16, **changes}
    return jaxadv.evaluate(model, images, labels, attacks=attacks, **arguments)


def robust_at(eps):
    return float(np.mean(margins_at(eps) > 0))


def margins_at(eps):
    return MARGINS - eps * np.abs(W).sum()


def test_accuracies_have_their_closed_form():
    result = evaluate(eps=(0.02, 0.06))
    assert result.clean.accuracy == np.mean(MARGINS > 0)
    assert [one.accuracy for one in result.evaluation.worst_case] == [
        robust_at(0.02),
        robust_at(0.06),
    ]
    assert result.robust_accuracy == robust_at(0.02)  # at the radius nearest to 8/255
    low, high = result.worst_case.ci95
    assert low < result.robust_accuracy < high
    np.testing.assert_array_equal(result.examples.attacks["pgd/0.06"].robust, margins_at(0.06) > 0)
    assert 0.1 < robust_at(0.06) < robust_at(0.02) < 0.9


def test_a_function_has_the_result_of_a_module_with_its_weights():
    results, _, examples = run_suite(Linear(), WEIGHTS, SPLIT, pgd={**PGD["pgd"], "eps": (0.06,)})
    found = evaluate(images=SPLIT.images)
    ours, theirs = found.examples.to_arrays(), examples.to_arrays()
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5, err_msg=name)
    assert found.evaluation.worst_case == results.worst_case


@pytest.mark.parametrize(
    "model",
    [
        lambda key, images: logits_fn(images),
        jax.jit(logits_fn),
        jaxadv.wrap(logits_fn, name="mine"),
    ],
    ids=["with a key", "jitted", "wrapped"],
)
def test_other_forms_of_the_model_give_the_same(model):
    assert evaluate(model).robust_accuracy == robust_at(0.06)


@pytest.mark.parametrize("bounds", [(0, 255), (-1.0, 1.0)])
def test_images_and_model_may_have_other_bounds(bounds):
    low, high = bounds

    def scaled_fn(images):
        return logits_fn((images - low) / (high - low))

    result = evaluate(scaled_fn, IMAGES * (high - low) + low, bounds=bounds)
    assert result.robust_accuracy == robust_at(0.06)


def test_the_model_may_take_the_values_of_bytes():
    result = evaluate(lambda images: logits_fn(images / 255), SPLIT.images, bounds=(0, 255))
    assert result.robust_accuracy == robust_at(0.06)


@pytest.mark.parametrize("batch_size", [2, 14, 512])
def test_results_do_not_depend_on_the_batch_size(batch_size):
    attacks = {**PGD, "square": {"attack": "square", "num_queries": 30}}
    one, other = (evaluate(attacks=attacks, batch_size=size) for size in (16, batch_size))
    for name, array in one.examples.to_arrays().items():
        np.testing.assert_allclose(other.examples.to_arrays()[name], array, atol=1e-5, err_msg=name)


def test_radii_may_be_numbers_of_numpy():
    result = evaluate(eps=[np.float32(0.02), jnp.float32(0.06)])
    assert len(result.attacks) == 2


def test_a_model_that_is_always_wrong_has_a_robust_accuracy_of_0():
    wrong = np.asarray(1 - logits_fn(IMAGES).argmax(axis=1), np.int32)
    result = evaluate(labels=wrong, attacks={**PGD, "fgsm": {"attack": "fgsm"}})
    assert result.robust_accuracy == result.clean.accuracy == 0
    assert result.attacks["pgd/0.06"].attacked == 0


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SUITES)
def test_named_suites_run(name, norm):
    eps = {"linf": 0.06, "l2": 0.1}[norm]
    result = evaluate(attacks=name, eps=eps, norm=norm)
    dual = {"linf": np.abs(W).sum(), "l2": np.linalg.norm(W)}[norm]
    expected = np.mean(eps * dual < MARGINS)
    found = {one.eps: one.accuracy for one in result.evaluation.worst_case}[eps]
    # A search without gradients finds no more than there is.
    assert found == expected if name != "black_box" else found >= expected
    assert {entry.norm for entry in result.attacks.values()} == {norm}


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_suite_at_several_radii_scales_its_steps(stochastic):
    attacks = {one.key: one for one in named_suite("standard", (0.01, 0.3), "linf", stochastic)}
    assert attacks["pgd40/0.01"].arguments["step_size"] == 0.0025
    assert attacks["pgd40/0.3"].arguments["step_size"] == 0.075
    assert attacks["pgd40/0.3"].arguments["num_noise_samples"] == (20 if stochastic else 1)
    assert [key for key in attacks if key.startswith("pgd_unbounded")] == ["pgd_unbounded/0.5"]
    (rand,) = named_suite("autoattack", (0.1,), "linf", stochastic)[1:]
    assert rand.arguments["version"] == ("rand" if stochastic else "standard")


def test_a_black_box_is_attacked_without_gradients_and_the_result_says_so():
    queried = []

    def predict(images):
        queried.append(len(images))
        return probabilities(images)

    attacks = {**PGD, "square": {"attack": "square", "num_queries": 40}}
    result = evaluate(jaxadv.BlackBox(predict), attacks=attacks)
    assert list(result.attacks) == ["square/0.06"]
    assert "need gradients did not run: pgd" in result.warnings[0]
    assert result.clean.accuracy == np.mean(MARGINS > 0)
    robust = result.examples.attacks["square/0.06"].robust
    np.testing.assert_array_equal(robust & (margins_at(0.06) <= 0) | (margins_at(0.06) > 0), robust)
    spent = result.examples.attacks["square/0.06"].queries
    assert spent[MARGINS < 0].sum() == 0
    # Besides: a few images to check the answers, the clean images twice, and the attacked ones.
    correct = int((MARGINS > 0).sum())
    assert spent.sum() + 2 * 50 + correct <= sum(queried) <= spent.sum() + 2 * 50 + correct + 32
    same = evaluate(attacks={"square": attacks["square"]})
    np.testing.assert_array_equal(same.examples.attacks["square/0.06"].queries, spent)


def test_a_black_box_needs_an_attack_without_gradients():
    with pytest.raises(UserError, match=re.escape('all attacks need them (pgd): pass attacks="bl')):
        evaluate(jaxadv.BlackBox(probabilities))


def test_undeclared_noise_is_refused_and_declared_noise_is_averaged():
    def noisy_fn(key, images):
        return logits_fn(images + 0.05 * jax.random.normal(key, images.shape))

    with pytest.raises(UserError, match="stochastic=True"):
        evaluate(noisy_fn)
    result = evaluate(noisy_fn, stochastic=True)
    assert result.evaluation.stochastic
    assert result.clean.single_pass.std > 0
    assert any("averaged its gradients" in warning for warning in result.warnings)


def test_probabilities_are_named_in_the_result():
    result = evaluate(lambda images: jax.nn.softmax(logits_fn(images)))
    assert "returns probabilities" in result.warnings[0]


def test_the_result_as_text_as_html_and_as_a_page(tmp_path):
    result = evaluate(class_names=("dark", "light"), dataset="four pixels")
    text = str(result)
    assert f"{100 * robust_at(0.06):.1f} %" in text
    assert "four pixels" in text
    assert "worst case" in result._repr_html_()
    page = result.save(tmp_path / "folder" / "report.html").read_text()
    for expected in ("four pixels", "dark", f"{100 * robust_at(0.06):.1f} %", "50 images"):
        assert expected in page
    for absent in ("checkpoint", "metrics.jsonl", "config.json", "Training"):
        assert absent not in page
    assert json.loads(json.dumps(result.to_json()))["attacks"]["pgd/0.06"]["eps"] == 0.06
    with pytest.raises(UserError, match=r"must end with \.html"):
        result.save(tmp_path / "report.pdf")


SEARCHES = {**PGD, "square": {"attack": "square", "num_queries": 30}}


@pytest.fixture
def interrupted(monkeypatch, tmp_path):
    """Return the folder of an evaluation that was interrupted in its second attack."""
    run_attack = jaxadv.evaluation.suite.run_attack

    def interrupt(model, split, attack, *args, **kwargs):
        if attack.name == "square":
            raise KeyboardInterrupt
        return run_attack(model, split, attack, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(jaxadv.evaluation.suite, "run_attack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(attacks=SEARCHES, cache=tmp_path)
    assert (tmp_path / "pgd%2F0.06.npz").exists()
    return tmp_path


def test_an_interrupted_evaluation_resumes(interrupted):
    # The time of the record shows that it is read, and not made again.
    with np.load(interrupted / "pgd%2F0.06.npz") as record:
        arrays = dict(record)
    np.savez(interrupted / "pgd%2F0.06.npz", **{**arrays, "seconds": np.asarray(1000.0)})
    whole, again = evaluate(attacks=SEARCHES), evaluate(attacks=SEARCHES, cache=interrupted)
    assert again.attacks["pgd/0.06"].seconds > 1000
    for name, array in whole.examples.to_arrays().items():
        np.testing.assert_array_equal(again.examples.to_arrays()[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda images: logits_fn(images + 0.01)}, "another task|another model"),
        ({"eps": 0.06 + 1e-9}, "another task"),
        ({"seed": 1}, "another task"),
        ({"labels": 1 - SPLIT.labels}, "another task"),
        ({"model": lambda images: jnp.pad(logits_fn(images), ((0, 0), (0, 1)))}, "another task"),
    ],
    ids=["model", "eps", "seed", "labels", "number of classes"],
)
def test_another_evaluation_does_not_resume(interrupted, changes, message):
    with pytest.warns(UserWarning, match=message):
        found = evaluate(attacks=SEARCHES, cache=interrupted, **changes)
    fresh = evaluate(attacks=SEARCHES, **changes)
    np.testing.assert_array_equal(found.examples.margins, fresh.examples.margins)
    for key, attacked in fresh.examples.attacks.items():
        np.testing.assert_array_equal(found.examples.attacks[key].margins, attacked.margins)


def test_a_finished_search_is_not_repeated(tmp_path):
    queried = []

    def predict(images):
        queried.append(len(images))
        return probabilities(images)

    attacks = {"square": {**SEARCHES["square"], "share": np.float32(0.5)}}
    first = evaluate(jaxadv.BlackBox(predict), attacks=attacks, cache=tmp_path)
    all_queries, spent = sum(queried), first.examples.attacks["square/0.06"].queries.sum()
    queried.clear()
    evaluate(jaxadv.BlackBox(predict), attacks=attacks, cache=tmp_path)
    assert sum(queried) == all_queries - spent


def test_a_random_model_does_not_resume_from_another(tmp_path):
    def noisy(shift):
        def logits(key, images):
            return logits_fn(images + shift + 0.05 * jax.random.normal(key, images.shape))

        return logits

    options = {"cache": tmp_path, "stochastic": True}
    evaluate(noisy(0), **options)
    evaluate(noisy(0), **options)  # a warning would be an error
    with pytest.warns(UserWarning, match="another model"):
        evaluate(noisy(0.01), **options)


def test_a_random_server_resumes(tmp_path):
    generator = np.random.default_rng(0)

    def predict(images):
        return probabilities(images + generator.normal(0, 0.05, images.shape))

    options = {"attacks": {"square": SEARCHES["square"]}, "cache": tmp_path, "stochastic": True}
    evaluate(jaxadv.BlackBox(predict), **options)
    evaluate(jaxadv.BlackBox(predict), **options)  # a warning would be an error


def test_in_a_notebook_the_text_is_plain_and_nothing_is_displayed(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", None)
    result = evaluate(class_names=np.array(["dark", "light"]))
    assert "\x1b" not in str(result)
    assert "worst case" in result._repr_html_()


ERRORS = {
    "an unknown suite": ({"attacks": "fast"}, "attacks is 'fast': use one of standard, autoattack"),
    "no radius": ({"attacks": "standard", "eps": None}, "pass eps, such as eps=8/255"),
    "no radius of an attack": ({"eps": None}, r"attacks\.pgd lacks eps"),
    "an unknown attack": ({"attacks": {"a": {"attack": "zoo"}}}, r"attacks\.a\.attack is 'zoo'"),
    "an unknown argument": (
        {"attacks": {"a": {**PGD["pgd"], "step_sise": 3}}}, r"a\.step_sise is not .*step_size",
    ),
    "an invalid argument": (
        {"attacks": {"a": {**PGD["pgd"], "num_steps": -1}}}, r"attacks\.a\.num_steps is -1",
    ),
    "no attacks": ({"attacks": {}}, "attacks is empty"),
    "another norm": ({"norm": "l3"}, "norm is 'l3': it must be one of linf, l2"),
    "a batch size of 0": ({"batch_size": 0}, "batch_size is 0"),
    "floats beyond the bounds": ({"images": IMAGES * 255}, r"pass bounds, such as bounds=\(0, 255"),
    "bounds without order": ({"bounds": (1, 0)}, r"bounds is \(1, 0\): pass the smallest"),
    "eps in bytes": ({"eps": 8}, "eps is 8, more than the range of pixel values: write 8/255"),
    "eps as text": ({"eps": "8/255", "attacks": "standard"}, "eps is '8/255': it must be a tuple"),
    "two radii of one name": (
        {"eps": (0.03137, 8 / 255), "attacks": "black_box"}, "the same first four digits",
    ),
    "a list of attacks": ({"attacks": ["pgd"]}, r"attacks is \['pgd'\]: pass the name of a suite"),
    "a name for an attack": ({"attacks": {"a": "pgd"}}, "pass the name of a suite, or a mapping"),
    "bounds of bytes for a wrapped model": (
        {"model": jaxadv.wrap(logits_fn), "images": SPLIT.images, "bounds": (0, 255)},
        r"bounds=\(0, 255\) has no effect: pass bounds to the jaxadv\.wrap",
    ),
    "images with NaN": ({"images": IMAGES * np.nan}, "50 of 50 images contain NaN"),
    "a failing model": (
        {"model": jaxadv.Classifier(lambda key, x: 1 / 0)}, "model fails on images of shape",
    ),
    "class names": ({"class_names": ("a",)}, "has 1 names, but the model has 2 classes"),
    "a noise": (
        {"attacks": {"a": {**PGD["pgd"], "noise": "off"}}}, r"noise is 'off': logits_fn has",
    ),
    "channels first": (
        {"images": np.zeros((50, 3, 8, 8), np.float32)}, r"transpose\(0, 2, 3, 1\)",
    ),
    "one-hot labels": ({"labels": np.eye(2)[SPLIT.labels]}, "argmax"),
    "labels out of range": ({"labels": SPLIT.labels + 1}, "labels lie in"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_mistakes_are_one_line_that_says_what_to_write(changes, message):
    arguments = {"model": logits_fn, "images": IMAGES, "labels": SPLIT.labels, "attacks": PGD}
    arguments |= {"eps": 0.06, "progress": False, **changes}
    with pytest.raises(UserError, match=message) as raised:
        inspect.unwrap(jaxadv.evaluate)(**arguments)  # without the type checks of the tests
    assert "\n" not in str(raised.value)


def test_the_public_names_are_importable():
    assert set(jaxadv.__all__) <= set(dir(jaxadv))
    for name in jaxadv.__all__:
        assert callable(getattr(jaxadv, name))
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        jaxadv.evalute  # noqa: B018
    assert jaxadv.attacks.pgd
