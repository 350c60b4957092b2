"""Mutation testing: which small errors in the code does the test suite catch?

    python benchmarks/mutations.py --only fab
    python benchmarks/mutations.py --out results
    python benchmarks/mutations.py --tree ../old-checkout --out results/old

Each mutation replaces one snippet of one file, in a temporary copy of the tree, and runs the test
files that should notice. Statuses:

- killed: a test failed. A failed import of a test file or an empty collection does not count.
- survived: all tests passed, so nothing tests this line.
- not found: the snippet no longer occurs exactly once; point the mutation at the new code.
- no tests: the tree has none of the test files.
- broken: pytest ended in another way, for example because a module could not be imported.
- timeout: the tests did not end in time.

The exit status is 0 only if every mutation was killed. To follow a change of the code, add a
spelling to the mutation, or a path to `FILES`: older trees still match the old one.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxadv.provenance import provenance

ROOT = Path(__file__).parents[1]
COPIED = ("jaxadv", "configs", "tests", "benchmarks", "run.py", "pyproject.toml")
TIMEOUT = 600  # seconds for the tests of one mutation
# The options of pyproject.toml, without the parallel workers and the doctests.
PYTEST = (
    sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider",
    "-o", "addopts=", "--jaxtyping-packages=jaxadv,checked_types.checked", "--tb=line", "-rfE",
)  # fmt: skip
KILLED, SURVIVED = "killed", "survived"

# Where each file lies; the first path that exists in the tree is mutated.
FILES: dict[str, tuple[str, ...]] = {
    **{
        name: (f"jaxadv/attacks/{name}.py",)
        for name in (
            "apgd", "attempt", "autoattack", "boundary", "cascade", "expectation", "fab",
            "finite_difference", "flags", "gradient", "inputs", "label_only", "nes", "queries",
            "random_search", "snapshot", "square", "targets", "threat", "tracing", "arguments",
        )
    },
    **{
        name: (f"jaxadv/{name}.py",)
        for name in (
            "curriculum", "gan", "langevin", "logits", "losses", "metrics", "optimizer", "quality",
            "sampling", "smoothing", "train_step",
        )
    },
}  # fmt: skip


class Mutation(NamedTuple):
    """One error to plant.

    Attributes:
      file: key of `FILES`.
      breaks: what the error does.
      tests: test files that should fail, the likeliest first.
      spellings: pairs of the correct snippet and the wrong one; the first whose correct snippet
        occurs exactly once in the file is applied.
    """

    file: str
    breaks: str
    tests: tuple[str, ...]
    spellings: tuple[tuple[str, str], ...]


def _of(file: str, tests: str, *mutations: tuple) -> list[Mutation]:
    """Returns the mutations of one file: `(breaks, old, new, ...)`, with further spellings."""
    paths = tuple(f"tests/{name}.py" for name in tests.split())
    return [
        Mutation(file, breaks, paths, tuple(zip(snippets[::2], snippets[1::2], strict=True)))
        for breaks, *snippets in mutations
    ]


MUTATIONS = [
    *_of(
        "fab",
        "attacks/test_fab_known_answers attacks/test_fab",
        ("overshoot of a step", "_OVERSHOOT = 1.05", "_OVERSHOOT = 1.2"),
        ("backward step from a misclassified image", "_BACK = 0.9", "_BACK = 0.5"),
        ("bias towards the clean image", "_LARGEST_PULL = 0.1", "_LARGEST_PULL = 0.5"),
        (
            "restart radius",
            "jnp.minimum(found.memory.distance, eps) / 2",
            "jnp.minimum(found.memory.distance, eps)",
        ),
        (
            "restart radius ignores what was found",
            "jnp.minimum(found.memory.distance, eps) / 2",
            "eps / 2",
        ),
        (
            "the first attempt starts at random too",
            "number % num_restarts > 0",
            "number % num_restarts >= 0",
        ),
        ("dual norm of L-inf", '{"linf": 1, "l2": 2}[norm]', '{"linf": jnp.inf, "l2": 2}[norm]'),
        ("dual norm of L2", '{"linf": 1, "l2": 2}[norm]', '{"linf": 1, "l2": 1}[norm]'),
        (
            "untargeted FAB takes the nearest class in logits",
            "jnp.abs(values) / reach.T",
            "jnp.abs(values)",
        ),
        (
            "gradients of untargeted FAB are undercounted",
            "values[rows, nearest], values.shape[1] - 1)",
            "values[rows, nearest], 1)",
            "value, values.shape[1] - 1, num_bad)",
            "value, 1, num_bad)",
        ),
        ("plane seen from the clean image", "-values - behind", "-values + behind"),
        (
            "the latest misclassified image is kept, not the nearest",
            "nearer = wrong & (distance < found.memory.distance)",
            "nearer = wrong",
        ),
        (
            "success outside of the ball",
            "nearer & (distance <= eps)",
            "nearer & (distance <= 2 * eps)",
        ),
        (
            "budget without the restarts",
            "_QUERIES_OF_STEP * num_steps * max(num_targets, 1) * num_restarts",
            "_QUERIES_OF_STEP * num_steps * max(num_targets, 1)",
        ),
    ),
    *_of(
        "boundary",
        "attacks/test_boundary",
        (
            "room to the wrong wall of the box",
            "jnp.where(normal > 0, 1 - images, images)",
            "jnp.where(normal < 0, 1 - images, images)",
        ),
        (
            "L2 projection moves all pixels alike",
            'jnp.ones_like(weight) if norm == "linf" else weight',
            "jnp.ones_like(weight)",
        ),
        ("the box is ignored", "jnp.minimum(ahead, room)", "ahead"),
        (
            "direction of the projection",
            "return jnp.sign(normal) * change",
            "return jnp.abs(jnp.sign(normal)) * change",
        ),
    ),
    *_of(
        "attempt",
        "attacks/test_apgd",
        ("APGD's momentum", "_MOMENTUM = 0.25", "_MOMENTUM = 0.5"),
        ("APGD's threshold of rises", "_RISES = 0.75", "_RISES = 0.5"),
        ("APGD's first step size", "2 * eps", "eps"),
        ("APGD's first window", "(0.22, 0.06, 0.03)", "(0.25, 0.06, 0.03)"),
        ("APGD's shortest window", "(0.22, 0.06, 0.03)", "(0.22, 0.03, 0.03)"),
        ("step size is quartered", "attempt.step_size / 2", "attempt.step_size / 4"),
        ("second condition of halving", "stuck = ~attempt.halved & ", "stuck = "),
        (
            "the best point is not returned to",
            "here, gradient, loss = select(halve, best, now)",
            "here, gradient, loss = now",
        ),
        (
            "momentum in the first step",
            "jnp.where(i == 1, 0, _MOMENTUM)",
            "jnp.where(i == 0, 0, _MOMENTUM)",
        ),
    ),
    *_of(
        "apgd",
        "attacks/test_best_is_kept attacks/test_apgd attacks/test_autoattack_versions",
        (
            "budget without the starts",
            "(num_steps + 1) * num_noise_samples",
            "num_steps * num_noise_samples",
        ),
        (
            "noise samples are not paid for",
            "queries=found.queries + num_noise_samples",
            "queries=found.queries + 1",
        ),
        ("restarts change the target", "number // num_restarts", "number"),
        (
            "the latest iterate is returned, not the best",
            "better = margins > found.margins",
            "better = margins > -jnp.inf",
        ),
    ),
    *_of(
        "targets",
        "attacks/test_apgd attacks/test_autoattack_versions attacks/test_nonfinite",
        (
            "misclassified images are attacked",
            "select((margins > 0) & affordable, wrong, ranked)",
            "ranked",
        ),
        ("the label is among the targets", "jnp.where(is_label, -jnp.inf, logits)", "logits"),
    ),
    *_of(
        "square",
        "attacks/test_square attacks/test_shapes",
        ("schedule of the squares' size", "[10, 50, 200,", "[10, 50, 250,"),
        ("a square moves by eps", "square * 2 * eps * signs", "square * eps * signs"),
        (
            "side of a square in a wide image",
            "jnp.sqrt(share * height * width)",
            "jnp.sqrt(share * height * height)",
        ),
        ("L2 norm to spend, for 3 channels only", "unused / channels", "unused / 3"),
        (
            "signs of a square, for 3 channels only",
            "signs = rademacher(sign_key, (1, 1, channels))",
            "signs = rademacher(sign_key, (1, 1, 3))",
        ),
        (
            "squares of square images only",
            "sizes = jnp.array(shape[:2], jnp.int32)",
            "sizes = jnp.array([shape[0], shape[0]], jnp.int32)",
            "sizes = jnp.array(shape[:2])",
            "sizes = jnp.array([shape[0], shape[0]])",
        ),
        (
            "weights of the L2 bump",
            "across.shape)) + 2) ** 2",
            "across.shape)) + 2)",
        ),
        (
            "stripes of the start are horizontal",
            "eps * rademacher(key, (1, width, channels))",
            "eps * rademacher(key, (shape[0], 1, channels))",
        ),
    ),
    *_of(
        "threat",
        "attacks/test_threat",
        (
            "L2 starts crowd at the centre",
            "jax.random.uniform(radius_key, dtype=jnp.float32) ** (1 / math.prod(shape))",
            "jax.random.uniform(radius_key, dtype=jnp.float32)",
            "jax.random.uniform(radius_key) ** (1 / math.prod(shape))",
            "jax.random.uniform(radius_key)",
        ),
        (
            "radius of the L-inf ball",
            "jnp.clip(delta, -eps, eps)",
            "jnp.clip(delta, -eps, 2 * eps)",
        ),
        (
            "pixels leave [0, 1]",
            "jnp.clip(images + threat.project(delta, eps), 0.0, 1.0)",
            "images + threat.project(delta, eps)",
        ),
        (
            "length of an L2 step",
            "return scaled / jnp.maximum(_l2_norm(scaled), 1)",
            "return scaled",
        ),
        (
            "points inside L2 balls are moved to the sphere",
            "jnp.minimum(1.0, eps / jnp.maximum(_l2_norm(delta), floor))",
            "eps / jnp.maximum(_l2_norm(delta), floor)",
        ),
    ),
    *_of(
        "threat",
        "attacks/test_fab_known_answers attacks/test_apgd",
        (
            "starts lie inside the sphere",
            "images + radius * delta / length",
            "images + radius * delta",
            "images + radius * delta / threat.length(delta)",
            "images + radius * delta",
        ),
    ),
    *_of(
        "expectation",
        "attacks/test_expectation",
        (
            "gradients are summed, not averaged",
            "lambda x: x / noise.num_samples",
            "lambda x: x",
            "total.gradient / num_samples",
            "total.gradient",
        ),
        (
            "mean softmax is a sum",
            "total - jnp.log(noise.num_samples)",
            "total",
            "total - jnp.log(jnp.asarray(noise.num_samples, total.dtype))",
            "total",
        ),
        (
            "ensemble's gradient without its weights",
            "slope * jnp.exp(logits - mean)",
            "slope",
        ),
        (
            "a noise sample too many in the last chunk",
            "draws < noise.num_samples",
            "draws <= noise.num_samples",
        ),
        (
            "all noise samples are the same",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, draws)",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, 0 * draws)",
        ),
    ),
    *_of(
        "finite_difference",
        "attacks/test_nes",
        ("both queries on one side", "jnp.concatenate([u, -u])", "jnp.concatenate([u, u])"),
        (
            "scale of the estimate",
            "gradient / (2 * num_pairs * sampling.sigma)",
            "gradient / (num_pairs * sampling.sigma)",
        ),
        (
            "sign of the estimate",
            "values[:num_at_once] - values[num_at_once:]",
            "values[num_at_once:] - values[:num_at_once]",
        ),
        ("sigma is ignored", "sampling.sigma * jnp.concatenate", "1e-3 * jnp.concatenate"),
        (
            "mean of the objective",
            "value / (2 * num_pairs)",
            "value / num_pairs",
            "total.values / (2 * num_pairs)",
            "total.values / num_pairs",
        ),
        (
            "both queries under the same noise",
            "jnp.concatenate([pairs, -1 - pairs])",
            "jnp.concatenate([pairs, pairs])",
        ),
    ),
    *_of(
        "queries",
        "attacks/test_best_is_kept attacks/test_queries",
        (
            "noise samples of a look are not paid for",
            "jnp.where(first, 0, how.cost(found)) + look_cost",
            "jnp.where(first, 0, how.cost(found)) + 1",
        ),
        (
            "the budget may be exceeded",
            "found.queries + cost(found) <= task.num_queries",
            "found.queries + 1 <= task.num_queries",
        ),
        (
            "the last query is not spent",
            "found.queries + cost(found) <= task.num_queries",
            "found.queries + cost(found) < task.num_queries",
        ),
        (
            "a random search keeps what is worse",
            "kept = margins > found.margins",
            "kept = jnp.ones_like(found.success)",
        ),
        (
            "resumed rows skip steps",
            "rows = ready & (found.steps == step)",
            "rows = ready",
        ),
    ),
    *_of(
        "queries",
        "attacks/test_nes attacks/test_queries",
        (
            "the last look is free",
            "success=margins > 0, queries=found.queries + look_cost)",
            "success=margins > 0)",
        ),
    ),
    *_of(
        "random_search",
        "attacks/test_queries",
        ("random search overcounts", "always(0)", "always(1)"),
    ),
    *_of(
        "nes",
        "attacks/test_nes",
        (
            "momentum of NES",
            "(1 - momentum) * gradient",
            "gradient",
            "(1 - momentum) * estimate.gradient",
            "estimate.gradient",
        ),
        ("plateau of NES", "jnp.maximum(step_size / 2", "jnp.maximum(step_size / 4"),
    ),
    *_of(
        "gradient",
        "attacks/test_gradient",
        (
            "PGD descends",
            "adversarial + step_size * threat.steepest(gradient) - images",
            "adversarial - step_size * threat.steepest(gradient) - images",
            "found.images + step_size * threat.steepest(here.gradient) - images",
            "found.images - step_size * threat.steepest(here.gradient) - images",
        ),
        (
            "PGD keeps its worst restart",
            "better = new_scores > scores",
            "better = new_scores < scores",
        ),
        ("step of FGSM", "step_size=eps,", "step_size=eps / 2,"),
        (
            "noise of N-FGSM",
            "radius = jnp.asarray(2 * eps,",
            "radius = jnp.asarray(eps,",
            "inputs.example_ids, images, 2 * eps)",
            "inputs.example_ids, images, eps)",
        ),
    ),
    *_of(
        "gradient",
        "attacks/test_gradient_keys",
        (
            "every step of PGD sees the same noise",
            "step_key = jax.random.fold_in(noise_key, i)",
            "step_key = noise_key",
        ),
    ),
    *_of(
        "autoattack",
        "attacks/test_autoattack_versions attacks/test_autoattack",
        ("targets of AutoAttack", "_NUM_TARGETS = 9", "_NUM_TARGETS = 3"),
        (
            "restarts of APGD-DLR in plus",
            '"apgd_dlr": {**_DLR, "num_restarts": 5}',
            '"apgd_dlr": {**_DLR, "num_restarts": 1}',
        ),
        (
            "plus has a targeted FAB twice",
            '"num_targets": 0, "num_restarts": 5}',
            '"num_targets": 9, "num_restarts": 5}',
        ),
        ("queries of Square", '"num_queries": 5000}', '"num_queries": 500}'),
        ("noise samples of rand", '{"num_noise_samples": 20}', '{"num_noise_samples": 1}'),
        (
            "standard without FAB",
            '"apgd_t": _APGD_T, "fab_t": _FAB_T, "square": _SQUARE}',
            '"apgd_t": _APGD_T, "square": _SQUARE}',
        ),
        (
            "standard with APGD-T before APGD-CE",
            '{"apgd_ce": _CE, "apgd_t": _APGD_T,',
            '{"apgd_t": _APGD_T, "apgd_ce": _CE,',
        ),
        (
            "few classes: a target is left out",
            'min(arguments["num_targets"], num_classes - 1)',
            'min(arguments["num_targets"], max(num_classes - 2, 1))',
        ),
        (
            "few classes: more targets than there are",
            'min(arguments["num_targets"], num_classes - 1)',
            'arguments["num_targets"]',
        ),
    ),
    *_of(
        "flags",
        "attacks/test_autoattack_versions attacks/test_autoattack",
        ("three classes are not flagged", "num_classes < 4", "num_classes < 3"),
    ),
    *_of(
        "cascade",
        "attacks/test_autoattack_versions attacks/test_autoattack",
        (
            "misclassified images count as robust",
            "np.where(wrong, CLEAN, STANDING)",
            "np.where(wrong, STANDING, STANDING)",
        ),
        (
            "accuracies count the clean errors twice",
            "left = len(self.broken_by) - np.cumsum(broken)",
            "left = len(self.broken_by) - np.cumsum(broken) - broken[0]",
        ),
    ),
    *_of(
        "losses",
        "test_losses attacks/test_apgd",
        (
            "sign of the label's logit in the margin",
            ".max(axis=-1) - label_logit",
            ".max(axis=-1) + label_logit",
        ),
        ("sign of the probability loss", "-jnp.exp(-cross_entropy", "jnp.exp(-cross_entropy"),
        (
            "denominator of the DLR",
            "largest[:, 0] - largest[:, 2] + _TINY",
            "largest[:, 0] - largest[:, 1] + _TINY",
        ),
        (
            "denominator of the targeted DLR",
            "largest[:, 2:].mean(axis=-1)",
            "largest[:, 2]",
        ),
        ("sign of the targeted margin", "pair[:, 0] - pair[:, 1]", "pair[:, 1] - pair[:, 0]"),
        ("sign of targeted losses", "-loss_fn(logits, targets)", "loss_fn(logits, targets)"),
        (
            "weight of smoothed labels",
            "(1 - smoothing) * cross_entropy(logits, labels)",
            "cross_entropy(logits, labels)",
        ),
        (
            "order of the divergence",
            "jnp.exp(expected) * (expected - actual)",
            "jnp.exp(actual) * (actual - expected)",
        ),
        (
            "two classes divide by zero in the DLR",
            "if logits.shape[-1] < 3:",
            "if logits.shape[-1] < 2:",
        ),
    ),
    *_of(
        "train_step",
        "test_train_step",
        (
            "synthetic images are never attacked",
            "round(recipe.num_attacked * recipe.num_synthetic / share)",
            "0 * share",
        ),
        ("denominator of TRADES", "divergences.sum() / len(labels)", "divergences.mean()"),
        (
            "order of the divergence in TRADES",
            "divergence(logits[:n], attacked)",
            "divergence(attacked, logits[:n])",
        ),
        ("beta of TRADES", "(recipe.trades_beta or 0.0) * ", ""),
        (
            "gradients are summed over devices",
            "lax.pmean((gradients, batch_stats, metrics), AXIS)",
            "lax.psum((gradients, batch_stats, metrics), AXIS)",
        ),
        (
            "devices do not average",
            "lax.pmean((gradients, batch_stats, metrics), AXIS)",
            "(gradients, batch_stats, metrics)",
        ),
        (
            "training on clean images only",
            "images = jnp.concatenate([adversarial, clean[n:]])",
            "images = clean",
        ),
        (
            "step of the moving average",
            "moving_average(ema, variables, recipe.ema_decay, step)",
            "moving_average(ema, variables, recipe.ema_decay, state.step)",
        ),
        (
            "the same noise in every training step",
            'stream(recipe.seed, "noise", state.step)',
            'stream(recipe.seed, "noise", 0)',
        ),
        (
            "the same attack key in every training step",
            'stream(recipe.seed, "attack", state.step)',
            'stream(recipe.seed, "attack", 0)',
        ),
        (
            "smoothing of real labels",
            "mix(jnp.zeros(len(indices)), jnp.full(recipe.num_synthetic, recipe.label_smoothing))",
            "mix(jnp.full(len(indices), recipe.label_smoothing), jnp.zeros(recipe.num_synthetic))",
        ),
    ),
    *_of(
        "gan",
        "test_gan",
        (
            "sign of the generator's loss",
            "return -logits.mean(), changed",
            "return logits.mean(), changed",
        ),
        ("hinge of real images", "nn.relu(1 - of_real)", "nn.relu(1 + of_real)"),
        ("hinge of samples", "nn.relu(1 + of_fake)", "nn.relu(1 - of_fake)"),
        (
            "no hinge of real images",
            "nn.relu(1 - of_real).mean()",
            "(1 - of_real).mean()",
        ),
        ("no hinge of samples", "nn.relu(1 + of_fake).mean()", "(1 + of_fake).mean()"),
        ("position of the hinge", "nn.relu(1 - of_real)", "nn.relu(0 - of_real)"),
        (
            "classes of the samples are those of the real images",
            "classes = jnp.concatenate([labels, fake_labels])",
            "classes = jnp.concatenate([labels, labels])",
        ),
        (
            "the generator is updated towards another class",
            "recipe.discriminator.apply(state.discriminator, images, labels)",
            "recipe.discriminator.apply(state.discriminator, images, 0 * labels)",
        ),
        (
            "variance of the averaged generator",
            '"var": norm["var"] + norm["mean"] ** 2}',
            '"var": norm["var"]}',
        ),
        (
            "order of the two GAN optimisers' rates",
            "adam(config.optimizer.generator_learning_rate)",
            "adam(config.optimizer.discriminator_learning_rate)",
        ),
    ),
    *_of(
        "langevin",
        "test_langevin",
        ("length of the drift", "step_size / 2 * gradient", "step_size * gradient"),
        ("size of the noise", "jnp.sqrt(step_size) * noise", "step_size * noise"),
        (
            "sign of the drift",
            "points - step_size / 2 * gradient",
            "points + step_size / 2 * gradient",
        ),
        (
            "the same noise in every step",
            "jax.random.fold_in(key, i)",
            "jax.random.fold_in(key, 0)",
        ),
    ),
    *_of(
        "sampling",
        "test_gan",
        (
            "sign of the discriminator in the energy of DDLS",
            "(latents**2).sum(axis=-1) / 2 - realness",
            "(latents**2).sum(axis=-1) / 2 + realness",
        ),
        (
            "prior in the energy of DDLS",
            "(latents**2).sum(axis=-1) / 2 - realness",
            "(latents**2).sum(axis=-1) - realness",
        ),
        (
            "class of the energy of DDLS",
            "recipe.discriminator.apply(discriminator, images, labels)",
            "recipe.discriminator.apply(discriminator, images, 0 * labels)",
        ),
        ("bytes are rounded down", "jnp.round(images * 255)", "jnp.floor(images * 255)"),
        (
            "the least certain samples are kept",
            "labels] >= sampling.min_probability",
            "labels] <= sampling.min_probability",
        ),
    ),
    *_of(
        "smoothing",
        "test_smoothing",
        (
            "radius without sigma",
            "radii = sigma * ndtri",
            "radii = ndtri",
            "exact = sigma * ndtri",
            "exact = ndtri",
        ),
        (
            "the selection is estimated on the same noise",
            "counts_fn(1, num_estimation)",
            "counts_fn(0, num_estimation)",
            "_count(counts_fn, 1, num_estimation)",
            "_count(counts_fn, 0, num_estimation)",
        ),
        (
            "two-sided bound",
            "betaincinv(some, num_samples - some + 1, failure)",
            "betaincinv(some, num_samples - some + 1, failure / 2)",
        ),
        ("bound of one success fewer", "num_samples - some + 1", "num_samples - some"),
        ("size of the noise", "images + sigma * normal", "images + sigma**2 * normal"),
        (
            "abstains at the wrong bound",
            "lower > 0.5",
            "lower > 0.6",
            "np.maximum(lower, 0.5)",
            "np.maximum(lower, 0.6)",
        ),
        (
            "parts repeat the noise",
            "jax.random.fold_in(key, first + i)",
            "jax.random.fold_in(key, i)",
        ),
        ("the prediction's doubt", ".pvalue > failure", ".pvalue > 2 * failure"),
    ),
    *_of(
        "metrics",
        "test_metrics",
        ("confidence of the interval", "proportion_ci(0.95,", "proportion_ci(0.9,"),
        ("kind of the interval", 'method="wilson"', 'method="exact"'),
    ),
    *_of(
        "curriculum",
        "test_curriculum study/test_costs",
        (
            "the curriculum is an epoch ahead",
            "    t = epoch / num_epochs\n",
            "    t = (epoch + 1) / num_epochs\n",
        ),
        ("steps lost to rounding", "attack.num_steps_end) + 1e-9)", "attack.num_steps_end))"),
        (
            "cost of the clean batch of TRADES",
            '1 + attack.fraction * (config.train.loss == "trades")',
            "1",
        ),
        (
            "cost of the attacked share",
            "update + attack.fraction * num_steps",
            "update + num_steps",
        ),
        ("time of an update", "gradients + 2 for", "gradients + 1 for"),
    ),
    *_of(
        "optimizer",
        "test_optimizer test_gan",
        ("second drop of the learning rate", "num_steps * 3 // 4", "num_steps * 2 // 3"),
        ("warm-up of the moving average", "step / (step + 10)", "step / (step + 1)"),
        (
            "the schedule ends after the run",
            "num_epochs * steps_per_epoch - warmup_steps",
            "num_epochs * steps_per_epoch",
        ),
        (
            "Nesterov's momentum",
            "momentum=optimizer.momentum)",
            "momentum=optimizer.momentum, nesterov=True)",
        ),
        (
            "the scale of PNI's noise decays",
            "not keystr(path).endswith(\"['alpha']\")",
            "not keystr(path).endswith(\"['beta']\")",
        ),
    ),
    *_of(
        "quality",
        "test_quality",
        ("cross term of the Fréchet distance", "- 2 * cross", "- cross"),
        ("MMD is biased", "size * (size - 1)", "size * size"),
        ("degree of the MMD's kernel", "x.shape[1] + 1) ** 3", "x.shape[1] + 1) ** 2"),
        ("neighbours of precision and recall", "_NUM_NEIGHBOURS = 3", "_NUM_NEIGHBOURS = 2"),
        (
            "precision and recall are exchanged",
            "float(_covered(fake, real).mean()), float(_covered(real, fake).mean())",
            "float(_covered(real, fake).mean()), float(_covered(fake, real).mean())",
        ),
        ("distance of duplicates", "block <= distance**2", "block <= distance"),
    ),
    # Behaviour that is newer than commit b4ff9a4: trees before it lack the snippets.
    *_of(
        "tracing",
        "attacks/test_tracing attacks/test_snapshot attacks/test_autoattack_versions",
        ("one class is attacked", "if output.shape[1] < 2:", "if output.shape[1] < 1:"),
        (
            "other derivatives are the same program",
            "if gradients:\n        description =",
            "if False:\n        description =",
        ),
        (
            "operations without their parameters",
            "            _describe_parameters(equation),\n",
            "",
        ),
        (
            "weights hidden in jitted parts stay",
            "if not any(map(_has_constants,",
            "if any(map(_has_constants,",
        ),
        (
            "models of equal structure take each other's place",
            "tuple(map(id, arrays)), shown",
            "len(arrays), shown",
        ),
        (
            "weights of the same types are the same",
            "    known = _kept(_unchanged, place)\n    if known and all(",
            "    known = next(iter(_unchanged.values()), None)\n    if known or all(",
        ),
        ("other settings are the same trace", "gradients, _context()\n", "gradients\n"),
        ("gradients flow into the weights", "return jax.lax.stop_gradient(array)", "return array"),
    ),
    *_of(
        "snapshot",
        "attacks/test_snapshot",
        (
            "globals are not seen",
            "return function.__code__, described, self.describe(reached)",
            "return function.__code__, described",
        ),
        (
            "cells are not seen",
            "self._all(cells, function.__defaults__,",
            "self._all(function.__defaults__,",
        ),
        (
            "arrays of NumPy are constants",
            "            case jax.Array():",
            "            case np.ndarray():\n                return 'array'\n            case jax.Array():",  # noqa: E501
        ),
        (
            "methods of modules are not seen",
            "kind, self._all(methods, constants, kind.__bases__)",
            "kind",
        ),
    ),
    *_of(
        "inputs",
        "attacks/test_precision attacks/test_inputs attacks/test_tracing",
        ("half precision stays half", "images = at_least_single(images)\n    if", "if"),
        ("the edge is not clipped", "else jnp.clip(images, 0, 1)", "else images"),
        ("what is far outside passes", "tolerance = max(_ROUNDING,", "tolerance = max(1.0,"),
        ("targets may be the labels", "        if same:\n", "        if not same:\n"),
        ("labels beyond the classes pass", "< num_classes:", "< num_classes + 90:"),
    ),
    *_of(
        "arguments",
        "attacks/test_inputs test_config",
        ("counts beyond int32 pass", "LARGEST_COUNT = 2**31 - 1", "LARGEST_COUNT = 2**40"),
        ("chunks of one", '"chunk_size": _count(2)', '"chunk_size": _count(1)'),
        ("as many targets as classes", "num_targets >= num_classes", "num_targets > num_classes"),
    ),
    *_of(
        "logits",
        "attacks/test_nonfinite",
        (
            "infinite logits are numbers",
            "valid = jnp.isfinite(logits).all(axis=-1, keepdims=True)",
            "valid = ~jnp.isnan(logits).any(axis=-1, keepdims=True)",
        ),
        (
            "NaN predicts the first class",
            "logits.argmax(axis=-1), MISCLASSIFIED)",
            "logits.argmax(axis=-1), 0)",
        ),
    ),
    *_of(
        "losses",
        "attacks/test_nonfinite",
        ("NaN margins are no success", "jnp.where(jnp.isnan(ahead), jnp.inf, ahead)", "ahead"),
    ),
    *_of(
        "expectation",
        "attacks/test_nonfinite",
        (
            "NaN gradients make NaN images",
            "return jnp.where(finite[..., None, None, None], gradients, 0), ~finite",
            "return gradients, ~finite",
        ),
        (
            "bad gradients are not counted",
            "gradient, nonfinite.astype(jnp.int32))",
            "gradient, 0 * nonfinite.astype(jnp.int32))",
        ),
    ),
    *_of(
        "fab",
        "attacks/test_alone attacks/test_nonfinite",
        (
            "a withdrawn success bars others",
            "distance = jnp.where(~found.success & (distance <= eps), jnp.inf, distance)",
            "pass",
        ),
        ("rows skip steps of FAB", "rows = ready & (found.steps == step)", "rows = ready"),
    ),
    *_of(
        "apgd",
        "attacks/test_alone",
        ("rows skip steps of APGD", "rows = ready & (found.steps == step)", "rows = ready"),
    ),
    *_of(
        "gradient",
        "attacks/test_alone",
        (
            "reference and score share a key",
            "reference_key, score_key = jax.random.split(score_key)",
            "reference_key = score_key",
        ),
    ),
    *_of(
        "flags",
        "attacks/test_nonfinite",
        ("batch statistics raise no flag", "if probed.depends_on_batch.any():", "if False:"),
    ),
]


def main() -> None:
    """Prints a line for each mutation and a summary, and writes a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="run only mutations whose file or phrase contains this")
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="checkout to judge, by default this"
    )
    parser.add_argument("--out", type=Path, help="folder of mutations.json")
    parser.add_argument("--check", action="store_true", help="only check that snippets are found")
    options = parser.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if not options.only or options.only in f"{mutation.file}: {mutation.breaks}"
    ]
    if not chosen:
        sys.exit(f"--only is {options.only!r}: no mutation has that in its file or phrase")
    began, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="jaxadv-mutations-") as folder:
        tree = _copy(options.tree, Path(folder))
        if not options.check:
            _verify(tree, chosen)
        for number, mutation in enumerate(chosen, start=1):
            result = _judge(tree, mutation, run=not options.check)
            results.append(result)
            print(_line(f"{number}/{len(chosen)}", result), flush=True)
            if options.out:  # after each, so that an interrupted run leaves its results
                _write(options, results, time.monotonic() - began)
    counts = _counts(results)
    print(", ".join(f"{count} {status}" for status, count in counts.items()), f"of {len(results)}")
    sys.exit(not options.check and counts.get(KILLED, 0) < len(results))


def _copy(checkout: Path, folder: Path) -> Path:
    """Copies a tree, so that the checkout itself is never mutated."""
    for name in COPIED:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder.resolve()


def _verify(tree: Path, chosen: Iterable[Mutation]) -> None:
    """Exits unless the copy is what the tests import, and all test files pass unmutated."""
    command = [sys.executable, "-c", "import jaxadv; print(jaxadv.__file__)"]
    done = subprocess.run(
        command, cwd=tree / "tests", env=_environment(tree), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    imported = Path(done.stdout.strip()).resolve()
    if imported != tree / "jaxadv/__init__.py":
        sys.exit(f"the tests would import {imported}, not the copy in {tree}")
    tests = dict.fromkeys(test for mutation in chosen for test in _present(tree, mutation))
    began = time.monotonic()
    code, output = _pytest(tree, tuple(tests), TIMEOUT * max(len(tests), 1)) if tests else (0, "")
    if code:
        print(output)
        sys.exit("the tests fail without any mutation")
    print(f"unmutated: {len(tests)} test files pass ({time.monotonic() - began:.0f} s)", flush=True)


def _judge(tree: Path, mutation: Mutation, *, run: bool) -> dict:
    """Returns what the tests make of a mutation; the tree is as before afterwards."""
    began = time.monotonic()
    path = next((tree / path for path in FILES[mutation.file] if (tree / path).exists()), None)
    text = path.read_text() if path else ""
    spellings = [spelling for spelling in mutation.spellings if text.count(spelling[0]) == 1]
    tests = _present(tree, mutation)
    result = {
        "file": str(path.relative_to(tree)) if path else FILES[mutation.file][0],
        "breaks": mutation.breaks,
        "tests": tests,
        "old": mutation.spellings[0][0],
        "new": mutation.spellings[0][1],
        "status": "not found",
        "failed": None,
    }
    if path and spellings:
        old, new = spellings[0]
        result |= {"old": old, "new": new, "status": "found"}
        if not tests:
            result["status"] = "no tests"
        elif run:
            path.write_text(text.replace(old, new))
            try:
                code, output = _pytest(tree, tests, TIMEOUT)
            finally:
                path.write_text(text)
            # Only 1 is the failure of a test: 2 is an error in collection, 5 an empty collection.
            result["status"] = {0: SURVIVED, 1: KILLED, None: "timeout"}.get(code, "broken")
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
            result["failed"] = failed[1] if failed else None
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def _present(tree: Path, mutation: Mutation) -> tuple[str, ...]:
    """Returns the mutation's test files that the tree has: older ones lack the newer tests."""
    return tuple(test for test in mutation.tests if (tree / test).exists())


def _pytest(tree: Path, tests: tuple[str, ...], timeout: float) -> tuple[int | None, str]:
    """Returns the exit status of pytest, None if it ran out of time, and its output."""
    try:
        done = subprocess.run(
            [*PYTEST, *tests], cwd=tree, env=_environment(tree), capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def _environment(tree: Path) -> dict[str, str]:
    """Returns the environment in which Python imports the copy, not the installed package."""
    # Compiled files are recognised by time and size, which a mutation may leave as they were.
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def _line(number: str, result: dict) -> str:
    where = f"{Path(result['file']).stem}: {result['breaks']}"
    how = result["failed"] or ""
    return f"{number:>8}  {result['status']:9}  {where:70} {result['seconds']:6.1f} s  {how}"


def _counts(results: list[dict]) -> dict[str, int]:
    statuses = [result["status"] for result in results]
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def _write(options: argparse.Namespace, results: list[dict], seconds: float) -> None:
    record = {
        "counts": _counts(results),
        "tree": _describe(options.tree),
        "mutations": results,
        "provenance": provenance(seconds),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "mutations.json").write_text(json.dumps(record, indent=2) + "\n")


def _describe(tree: Path) -> dict:
    """Returns the commit of the tree that is judged, which need not be that of this script."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tree), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "commit": git("rev-parse", "--short", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", *COPIED)),
    }


if __name__ == "__main__":
    main()
