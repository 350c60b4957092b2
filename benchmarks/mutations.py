"""Mutation testing: do the tests fail when an error is planted in the code?

    python benchmarks/mutations.py --only fab
    python benchmarks/mutations.py --out results
    python benchmarks/mutations.py --tree ../older-checkout --out results/older
    python benchmarks/mutations.py --check

Each mutation replaces one snippet of one file, in a temporary copy of the tree, and runs the test
files of this code. Before the first mutation, the same test files must pass on the unmutated copy.
Possible results:

- killed: a test failed. A test file that cannot be imported, or has no tests, does not count.
- survived: all tests passed, so no test detects the error.
- not found: the snippet does not occur exactly once. Point the mutation at the new code.
- no tests: none of the test files exists in the tree.
- error: pytest ended in another way, for example because a module could not be imported.
- timeout: the tests took longer than 600 seconds.

The exit status is 0 only if every mutation was killed, or found with `--check`. When code changes,
add the new spelling of a snippet before the older ones, a new path to `FILES`, and a renamed test
file to `OLDER_TESTS`, so that the mutations still apply to older trees.
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

from jaxadv.runs.workdir import provenance

ROOT = Path(__file__).parents[1]
COPIED = ("jaxadv", "configs", "tests", "benchmarks", "run.py", "pyproject.toml")
TIMEOUT = 600  # seconds for the tests of one mutation
# The options of pyproject.toml, without parallel workers and doctests.
PYTEST = (
    sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider",
    "-o", "addopts=", "--jaxtyping-packages=jaxadv,checked_types.checked", "--tb=line", "-rfE",
)  # fmt: skip
FOUND, KILLED, SURVIVED = "found", "killed", "survived"

# Paths of the code by key, the newest first, except where a file was merged into another one: in
# older trees both exist, and the older path holds the code. The first existing path is mutated.
FILES: dict[str, tuple[str, ...]] = {
    "apgd": ("jaxadv/attacks/apgd.py",),
    "apgd_l1": ("jaxadv/attacks/apgd_l1.py",),
    "apgd_state": (
        "jaxadv/attacks/apgd_run.py",
        "jaxadv/attacks/attempt.py",
        "jaxadv/attacks/apgd.py",
    ),
    "arguments": ("jaxadv/attacks/arguments.py", "jaxadv/attacks/checks.py"),
    "autoattack": ("jaxadv/attacks/autoattack.py",),
    "autoattack_flags": (
        "jaxadv/attacks/autoattack_flags.py",
        "jaxadv/attacks/flags.py",
        "jaxadv/attacks/autoattack.py",
    ),
    "checks": ("jaxadv/attacks/checks.py", "jaxadv/attacks/inputs.py"),
    "convolution": ("jaxadv/core/convolution.py", "jaxadv/models/ops.py"),
    "curriculum": ("jaxadv/training/curriculum.py", "jaxadv/curriculum.py"),
    "ensemble": ("jaxadv/attacks/ensemble.py", "jaxadv/attacks/cascade.py"),
    "eot": ("jaxadv/attacks/eot.py", "jaxadv/attacks/expectation.py"),
    "fab": ("jaxadv/attacks/fab.py",),
    "fab_projection": ("jaxadv/attacks/boundary.py", "jaxadv/attacks/fab.py"),
    "fast_convolutions": ("jaxadv/attacks/fast_convolutions.py",),
    "forget_unconfirmed": ("jaxadv/attacks/search.py", "jaxadv/attacks/fab.py"),
    "gan_metrics": ("jaxadv/gan/metrics.py", "jaxadv/quality.py"),
    "gan_sampling": ("jaxadv/gan/sampling.py", "jaxadv/sampling.py"),
    "gan_step": ("jaxadv/gan/step.py", "jaxadv/gan.py"),
    "gradient_estimate": ("jaxadv/attacks/finite_difference.py", "jaxadv/attacks/nes.py"),
    "image_range": ("jaxadv/core/images.py", "jaxadv/attacks/inputs.py"),
    "langevin": ("jaxadv/gan/sampling.py", "jaxadv/langevin.py"),
    "logits": ("jaxadv/core/logits.py", "jaxadv/logits.py"),
    "losses": ("jaxadv/core/losses.py", "jaxadv/losses.py"),
    "metrics": ("jaxadv/evaluation/metrics.py", "jaxadv/metrics.py"),
    "nes": ("jaxadv/attacks/nes.py",),
    "optimizer": ("jaxadv/training/optimizer.py", "jaxadv/optimizer.py"),
    "pgd": ("jaxadv/attacks/pgd.py", "jaxadv/attacks/gradient.py"),
    "random_search": ("jaxadv/attacks/random_search.py",),
    "search": ("jaxadv/attacks/search.py", "jaxadv/attacks/queries.py"),
    "smoothing": ("jaxadv/evaluation/smoothing.py", "jaxadv/smoothing.py"),
    "snapshot": ("jaxadv/attacks/snapshot.py",),
    "square": ("jaxadv/attacks/square.py",),
    "target_classes": ("jaxadv/attacks/targets.py", "jaxadv/attacks/search.py"),
    "threat": ("jaxadv/attacks/threat.py",),
    "tracing": ("jaxadv/attacks/tracing.py",),
    "train_step": ("jaxadv/training/step.py", "jaxadv/train_step.py"),
    "training_batch": ("jaxadv/training/batch.py", "jaxadv/training/step.py"),
    "training_losses": ("jaxadv/training/losses.py", "jaxadv/training/step.py"),
    "cutmix": ("jaxadv/data/cutmix.py",),
    "gradient_alignment": ("jaxadv/training/gradient_alignment.py",),
    "weight_perturbation": ("jaxadv/training/weight_perturbation.py",),
    "cw": ("jaxadv/attacks/cw.py",),
    "hop_skip_jump": ("jaxadv/attacks/hop_skip_jump.py",),
    "rays": ("jaxadv/attacks/rays.py",),
    "sparse_rs": ("jaxadv/attacks/sparse_rs.py",),
    "for_inputs": ("jaxadv/attacks/for_inputs.py",),
    "fmn": ("jaxadv/attacks/fmn.py",),
    "universal": ("jaxadv/attacks/universal.py",),
    "odi": ("jaxadv/attacks/odi.py",),
}

# Names of test files in older trees.
OLDER_TESTS = {
    "attacks/test_batch_independence": "attacks/test_alone",
    "attacks/test_best_iterate": "attacks/test_best_is_kept",
    "attacks/test_checks": "attacks/test_inputs",
    "attacks/test_eot": "attacks/test_expectation",
    "attacks/test_fab_projection": "attacks/test_boundary",
    "attacks/test_pgd": "attacks/test_gradient",
    "attacks/test_pgd_randomness": "attacks/test_gradient_keys",
    "attacks/test_search": "attacks/test_queries",
    "core/test_losses": "test_losses",
    "evaluation/test_metrics": "test_metrics",
    "evaluation/test_smoothing": "test_smoothing",
    "gan/test_gan_metrics": "test_quality",
    "gan/test_gan_train": "test_gan",
    "gan/test_langevin": "test_langevin",
    "training/test_curriculum": "test_curriculum",
    "training/test_optimizer": "test_optimizer",
    "training/test_step": "test_train_step",
}


class Mutation(NamedTuple):
    """An error to plant.

    Attributes:
      file: key of `FILES`.
      breaks: description of the error.
      tests: paths of test files that should fail, in the order in which they run.
      spellings: pairs of a correct and a wrong snippet. The first pair whose correct snippet occurs
        exactly once in the file is applied.
    """

    file: str
    breaks: str
    tests: tuple[str, ...]
    spellings: tuple[tuple[str, str], ...]


def _of(file: str, tests: str, *mutations: tuple) -> list[Mutation]:
    """Return the mutations of one file.

    Args:
      file: key of `FILES`.
      tests: names of the test files in the newest tree, separated by spaces.
      mutations: `(breaks, old, new, ...)`; further pairs of old and new are other spellings.
    """
    names = [(name, OLDER_TESTS.get(name, name)) for name in tests.split()]
    paths = tuple(f"tests/{name}.py" for pair in names for name in dict.fromkeys(pair))
    return [
        Mutation(file, breaks, paths, tuple(zip(snippets[::2], snippets[1::2], strict=True)))
        for breaks, *snippets in mutations
    ]


MUTATIONS = [
    *_of(
        "fab",
        "attacks/test_fab_known_answers attacks/test_fab",
        (
            "overshoot of a step",
            "_ETA = 1.05",
            "_ETA = 1.2",
            "_OVERSHOOT = 1.05",
            "_OVERSHOOT = 1.2",
        ),
        ("length of a backward step", "_BETA = 0.9", "_BETA = 0.5", "_BACK = 0.9", "_BACK = 0.5"),
        (
            "bias towards the clean image",
            "_ALPHA_MAX = 0.1",
            "_ALPHA_MAX = 0.5",
            "_LARGEST_PULL = 0.1",
            "_LARGEST_PULL = 0.5",
        ),
        (
            "restart radius is twice as large",
            "jnp.minimum(extras.distance, eps) / 2",
            "jnp.minimum(extras.distance, eps)",
            "jnp.minimum(found.memory.distance, eps) / 2",
            "jnp.minimum(found.memory.distance, eps)",
        ),
        (
            "restart radius ignores the distance found",
            "jnp.minimum(extras.distance, eps) / 2",
            "eps / 2",
            "jnp.minimum(found.memory.distance, eps) / 2",
            "eps / 2",
        ),
        (
            "the first run has a random start",
            "run % options.num_restarts > 0",
            "run % options.num_restarts >= 0",
            "number % num_restarts > 0",
            "number % num_restarts >= 0",
        ),
        (
            "dual norm",
            "THREATS[DUALS[norm]]",
            "THREATS[norm]",
            '{"linf": 1, "l2": 2}[norm]',
            '{"linf": jnp.inf, "l2": 2}[norm]',
        ),
        (
            "L1 projection moves the least weights first",
            "reached = jnp.where(weight >= least, reach, 0)",
            "reached = jnp.where(weight <= least, reach, 0)",
        ),
        (
            "untargeted FAB takes the nearest class in logits",
            "jnp.abs(values) / dual_norm.T",
            "jnp.abs(values)",
            "jnp.abs(values) / reach.T",
            "jnp.abs(values)",
        ),
        (
            "gradients of untargeted FAB are undercounted",
            "value, values.shape[1] - 1, num_nonfinite)",
            "value, 1, num_nonfinite)",
            "value, values.shape[1] - 1, num_bad)",
            "value, 1, num_bad)",
            "values[rows, nearest], values.shape[1] - 1)",
            "values[rows, nearest], 1)",
        ),
        (
            "sign of the hyperplane's offset at the clean image",
            "-values - offset",
            "-values + offset",
            "-values - behind",
            "-values + behind",
        ),
        (
            "the latest misclassified image is kept, not the nearest",
            "is_nearer = is_wrong & (distance < extras.distance)",
            "is_nearer = is_wrong",
            "nearer = wrong & (distance < found.memory.distance)",
            "nearer = wrong",
        ),
        (
            "success outside the ball",
            "is_nearer & (distance <= eps)",
            "is_nearer & (distance <= 2 * eps)",
            "nearer & (distance <= eps)",
            "nearer & (distance <= 2 * eps)",
        ),
        (
            "budget without the restarts",
            'max(arguments.get("num_targets", 9), 1) * arguments.get("num_restarts", 1)',
            'max(arguments.get("num_targets", 9), 1)',
            "_QUERIES_OF_STEP * num_steps * max(num_targets, 1) * num_restarts",
            "_QUERIES_OF_STEP * num_steps * max(num_targets, 1)",
        ),
    ),
    *_of(
        "fab_projection",
        "attacks/test_fab_projection",
        (
            "distance to the wrong face of the box",
            "jnp.where(normal > 0, 1 - images, images)",
            "jnp.where(normal < 0, 1 - images, images)",
        ),
        (
            "L2 projection moves all pixels equally",
            'jnp.ones_like(weight) if norm == "linf" else weight',
            "jnp.ones_like(weight)",
        ),
        (
            "the box is ignored",
            "jnp.minimum(move, room)",
            "move",
            "jnp.minimum(ahead, room)",
            "ahead",
        ),
        (
            "direction of the projection",
            "return jnp.sign(normal) * jnp.where(",
            "return jnp.abs(jnp.sign(normal)) * jnp.where(",
            "return jnp.sign(normal) * move",
            "return jnp.abs(jnp.sign(normal)) * move",
            "return jnp.sign(normal) * change",
            "return jnp.abs(jnp.sign(normal)) * change",
        ),
    ),
    *_of(
        "apgd_state",
        "attacks/test_apgd",
        ("momentum of APGD", "_MOMENTUM = 0.25", "_MOMENTUM = 0.5"),
        (
            "threshold of increases of APGD",
            "_MIN_INCREASES = 0.75",
            "_MIN_INCREASES = 0.5",
            "_RISES = 0.75",
            "_RISES = 0.5",
        ),
        (
            "initial step size of APGD",
            "+ 2 * largest_radius(eps)",
            "+ largest_radius(eps)",
            "+ 2 * eps",
            "+ eps",
            "2 * eps",
            "eps",
        ),
        ("first window of APGD", "(0.22, 0.06, 0.03)", "(0.25, 0.06, 0.03)"),
        ("shortest window of APGD", "(0.22, 0.06, 0.03)", "(0.22, 0.03, 0.03)"),
        (
            "step size is divided by 4",
            "state.step_size / 2",
            "state.step_size / 4",
            "attempt.step_size / 2",
            "attempt.step_size / 4",
        ),
        (
            "condition without progress ignores an earlier halving",
            "no_progress = ~state.was_halved & ",
            "no_progress = ",
            "stuck = ~attempt.halved & ",
            "stuck = ",
        ),
        (
            "no return to the best point after a halving",
            "iterate, gradient, loss = select_rows(halve, best, current)",
            "iterate, gradient, loss = current",
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
        "cw",
        "attacks/test_minimal_norm",
        (
            "the constant never grows",
            "_GROWTH * memory.constant)",
            "memory.constant)",
        ),
        (
            "no bisection of the constant",
            "(low + high) / 2, _GROWTH",
            "high, _GROWTH",
        ),
        (
            "the margin counts on both sides of the boundary",
            "lags = (estimate.values < 0)[:, None, None, None]",
            "lags = (estimate.values < jnp.inf)[:, None, None, None]",
        ),
    ),
    *_of(
        "hop_skip_jump",
        "attacks/test_hop_skip_jump",
        (
            "directions are those of the other side",
            "> 0, 1.0, -1.0)",
            "> 0, -1.0, 1.0)",
        ),
        (
            "points stay away from the boundary",
            "_BLEND_TOLERANCE, threshold)",
            "0.5, 0.5)",
        ),
        (
            "jumps are never shortened",
            "extras._replace(step=extras.step / 2)",
            "extras._replace(step=extras.step)",
        ),
    ),
    *_of(
        "rays",
        "attacks/test_rays",
        (
            "blocks of the next level are skipped",
            "jnp.where(is_last, 0, block + 1)",
            "jnp.where(is_last, 1, block + 1)",
        ),
        (
            "worse directions are kept",
            "is_better = is_found & (high < extras.radius)",
            "is_better = ~is_found",
        ),
        ("coarse binary search", "_TOLERANCE = 1e-3", "_TOLERANCE = 1e-1"),
    ),
    *_of(
        "for_inputs",
        "attacks/test_for_inputs",
        (
            "bounds do not scale",
            "return low + (high - low) * images",
            "return low + images",
        ),
        (
            "values outside of the mask change",
            "may_change = np.ones(places.shape, bool) if mask is None else mask",
            "may_change = np.ones(places.shape, bool) if mask is None else mask | True",
        ),
        (
            "pixels under a mask lose their channels",
            "return places[pixels].reshape(-1, 1, channels)",
            "return places[pixels].reshape(-1, 1, 1)",
        ),
        (
            "a rectangle with a gap counts as one",
            "return bool(numbers[-1] - numbers[0] + 1 == len(numbers))",
            "return True",
        ),
        (
            "the model sees the scaled inputs where nothing changed",
            "jnp.where(is_same, original - values, 0)",
            "jnp.zeros_like(values)",
        ),
        (
            "the result has a gradient",
            "filled = lax.stop_gradient(self._fill(jnp.where(is_same, original, scaled)))",
            "filled = self._fill(jnp.where(is_same, original, scaled))",
        ),
        (
            "a resumed image may be outside of the ball",
            "perturb(THREATS[norm], clean, images - clean, radius)",
            "images",
        ),
    ),
    *_of(
        "threat",
        "attacks/test_radii",
        (
            "all images have the first radius",
            "return radius[:, None, None, None] if radius.ndim == 1 else radius",
            "return radius[:1, None, None, None] if radius.ndim == 1 else radius",
        ),
        (
            "the largest radius is the least",
            "return radius.max(axis=(1, 2, 3)) if radius.ndim == 4 else radius",
            "return radius.min(axis=(1, 2, 3)) if radius.ndim == 4 else radius",
        ),
    ),
    *_of(
        "apgd_state",
        "attacks/test_radii",
        (
            "steps of APGD ignore the radius of a value",
            "step_size = step_size * (eps / largest)",
            "step_size = step_size * (eps > 0)",
            "direction = direction * (eps / largest)",
            "direction = direction * (eps > 0)",
        ),
    ),
    *_of(
        "odi",
        "attacks/test_odi",
        (
            "weights of ODI are never negative",
            "(weights.astype(logits.dtype) * logits)",
            "(abs(weights).astype(logits.dtype) * logits)",
        ),
        (
            "all examples have the same weights of ODI",
            "keys = example_keys(key, example_ids)",
            "keys = example_keys(key, 0 * example_ids)",
        ),
        (
            "weights of log probabilities have another mean",
            "weights -= weights.mean(axis=1, keepdims=True)",
            "weights -= 0.5",
        ),
    ),
    *_of(
        "apgd_state",
        "attacks/test_odi",
        (
            "the start of APGD is the last iterate but one of ODI",
            "i <= num_odi_steps,",
            "i < num_odi_steps,",
        ),
        (
            "steps of ODI in APGD are half as long",
            "state.iterate, state.gradient, eps, eps)",
            "state.iterate, state.gradient, eps / 2, eps)",
        ),
    ),
    *_of(
        "apgd",
        "attacks/test_odi",
        (
            "ODI in APGD ignores how noise is averaged",
            "options.noise_average,\n                objective,",
            '"loss",\n                objective,',
        ),
        (
            "all runs of APGD have the same weights of ODI",
            "jax.random.fold_in(odi_key, number),",
            "odi_key,",
        ),
    ),
    *_of(
        "pgd",
        "attacks/test_odi",
        (
            "steps of ODI have the length of the attack's steps",
            "length = jnp.where(is_odi_step, as_column(eps), as_column(step_size))",
            "length = jnp.where(is_odi_step, as_column(step_size), as_column(step_size))",
        ),
        (
            "ODI in PGD ignores how noise is averaged",
            "options.noise_average,\n                    objective,",
            '"loss",\n                    objective,',
        ),
        (
            "all restarts have the same weights of ODI",
            "start_key, noise_key, odi_key = jax.random.split(key, 3)",
            "start_key, noise_key, odi_key = *jax.random.split(key), restart_key",
        ),
    ),
    *_of(
        "search",
        "attacks/test_radii",
        (
            "a search resumes in another ball with the same largest radius",
            "jnp.abs(delta) if eps.ndim == 4 else THREATS[norm].length(delta)",
            "THREATS[norm].length(delta)",
        ),
    ),
    *_of(
        "nes",
        "attacks/test_radii",
        ("queries change fixed values", "if problem.eps.ndim == 4:", "if problem.eps.ndim == 5:"),
    ),
    *_of(
        "square",
        "attacks/test_square",
        (
            "a square in a column is one value",
            "length = jnp.where(side > other, length, side)",
            "length = jnp.minimum(side, other)",
        ),
    ),
    *_of(
        "universal",
        "attacks/test_universal",
        ("lost images pull", "_LARGEST_LOSS = 9.0", "_LARGEST_LOSS = 900.0"),
        (
            "no projection",
            "return threat.project(jnp.zeros_like(delta), delta, eps)",
            "return delta",
        ),
        ("batches overlap", "i % batches_per_pass * size", "i % batches_per_pass"),
        (
            "the order repeats in every pass",
            "jax.random.fold_in(order_key, number), len(images))",
            "order_key, len(images))",
        ),
    ),
    *_of(
        "fmn",
        "attacks/test_l0",
        (
            "the radius in L0 never shrinks",
            "jnp.minimum(iterate.radius - 1, jnp.floor(smaller))",
            "iterate.radius",
        ),
        (
            "the radius in L0 grows by a share only",
            "jnp.maximum(iterate.radius + 1, jnp.floor(larger))",
            "jnp.floor(larger)",
        ),
    ),
    *_of(
        "losses",
        "core/test_losses",
        (
            "the probability margin is that of the logits",
            "return margin(jax.nn.softmax(at_least_float32(logits)), labels)",
            "return margin(logits, labels)",
        ),
    ),
    *_of(
        "sparse_rs",
        "attacks/test_l0",
        (
            "new pixels may be old ones",
            "jnp.where((~pixels).sum() < num_new, ~pixels | old, ~pixels)",
            "pixels",
        ),
        (
            "rejected proposals keep their pixels",
            "extras.proposed, extras.pixels)",
            "extras.proposed, extras.proposed)",
        ),
    ),
    *_of(
        "threat",
        "attacks/test_l0",
        (
            "L0 projection ignores the box",
            "(delta**2 - (delta - clipped) ** 2)",
            "(delta**2)",
        ),
        (
            "L0 projection keeps a pixel too many",
            "rank < jnp.floor(eps), clipped, 0)",
            "rank <= jnp.floor(eps), clipped, 0)",
        ),
    ),
    *_of(
        "apgd_l1",
        "attacks/test_apgd_l1",
        ("radii of the phases", "_RADII = (3, 2, 1)", "_RADII = (2, 1, 1)"),
        ("sparsity of a step", "_SPARSITY = 1.5", "_SPARSITY = 1.2"),
        ("decrease of the step size", "_DECREASE = 1.5", "_DECREASE = 2.0"),
        ("least step", "_LEAST_STEP = 0.1", "_LEAST_STEP = 0.01"),
        (
            "no return to the sparser best point",
            "select_rows(is_checkpoint & is_sparser, best[:2], (iterate, gradient))",
            "iterate, gradient",
        ),
        (
            "a phase starts at the last iterate, not at the best",
            "[i], state.best, state.iterate + step)",
            "[i], state.iterate, state.iterate + step)",
        ),
        (
            "iterates of larger balls count",
            "num_outside=int((plan.radius > 1).sum())",
            "num_outside=0",
        ),
    ),
    *_of(
        "apgd",
        "attacks/test_best_iterate attacks/test_apgd attacks/test_autoattack_versions",
        (
            "budget without the starts",
            'run_length = arguments.get("num_steps", 100) + _num_starts(arguments)',
            'run_length = arguments.get("num_steps", 100)',
            "num_runs * (num_steps + 1) * arguments",
            "num_runs * num_steps * arguments",
            "(num_steps + 1) * num_noise_samples",
            "num_steps * num_noise_samples",
        ),
        (
            "noise samples do not count as queries",
            "queries=result.queries + num_noise_samples",
            "queries=result.queries + 1",
            "queries=found.queries + num_noise_samples",
            "queries=found.queries + 1",
        ),
        (
            "restarts change the target",
            "number // options.num_restarts",
            "number",
            "run // options.num_restarts",
            "run",
            "number // num_restarts",
            "number",
        ),
        (
            "the last iterate is returned, not the best",
            "select_rows(margins > result.margins, better, moved)",
            "select_rows(margins > -jnp.inf, better, moved)",
            "better = margins > found.margins",
            "better = margins > -jnp.inf",
        ),
    ),
    *_of(
        "target_classes",
        "attacks/test_apgd attacks/test_autoattack_versions attacks/test_nonfinite",
        (
            "misclassified images are attacked",
            "select_rows(is_success, misclassified, ranked)",
            "ranked",
            "select((margins > 0) & affordable, wrong, ranked)",
            "ranked",
        ),
        ("the label is among the targets", "jnp.where(is_label, -jnp.inf, logits)", "logits"),
    ),
    *_of(
        "square",
        "attacks/test_square attacks/test_shapes",
        ("schedule of the size of the squares", "[10, 50, 200,", "[10, 50, 250,"),
        (
            "a square changes by eps instead of 2 eps",
            "square * 2 * eps * signs",
            "square * eps * signs",
        ),
        (
            "side of a square in a wide image",
            "jnp.sqrt(share * height * width)",
            "jnp.sqrt(share * height * height)",
        ),
        (
            "unused L2 norm, for 3 channels only",
            "** order, 0) / channels",
            "** order, 0) / 3",
            "unused / channels",
            "unused / 3",
        ),
        (
            "signs of a square, for 3 channels only",
            "signs = rademacher(sign_key, (1, 1, channels))",
            "signs = rademacher(sign_key, (1, 1, 3))",
        ),
        (
            "positions of squares, for square images only",
            "sizes = jnp.array(shape[:2], jnp.int32)",
            "sizes = jnp.array([shape[0], shape[0]], jnp.int32)",
            "sizes = jnp.array(shape[:2])",
            "sizes = jnp.array([shape[0], shape[0]])",
        ),
        (
            "weights of the L2 bump",
            "_DECAY = {2: 2, 1: 4}",
            "_DECAY = {2: 1, 1: 4}",
            "across.shape)) + 2) ** 2",
            "across.shape)) + 2)",
        ),
        (
            "initial stripes are horizontal",
            "eps * rademacher(key, (1, width, channels))",
            "eps * rademacher(key, (shape[0], 1, channels))",
        ),
    ),
    *_of(
        "threat",
        "attacks/test_threat",
        (
            "L2 starts concentrate at the centre",
            "jax.random.uniform(key, dtype=jnp.float32) ** (1 / math.prod(shape))",
            "jax.random.uniform(key, dtype=jnp.float32)",
            "jax.random.uniform(radius_key) ** (1 / math.prod(shape))",
            "jax.random.uniform(radius_key)",
        ),
        (
            "radius of the L-inf ball",
            "jnp.clip(delta, -eps, eps)",
            "jnp.clip(delta, -eps, 2 * eps)",
        ),
        (
            "pixels outside [0, 1]",
            "jnp.clip(images + threat.project(images, delta, as_column(eps)), 0.0, 1.0)",
            "images + threat.project(images, delta, as_column(eps))",
            "jnp.clip(images + threat.project(images, delta, eps), 0.0, 1.0)",
            "images + threat.project(images, delta, eps)",
            "jnp.clip(images + threat.project(delta, eps), 0.0, 1.0)",
            "images + threat.project(delta, eps)",
        ),
        (
            "L1 projection ignores the box",
            "jnp.clip(magnitude - amount, 0, room)",
            "jnp.maximum(magnitude - amount, 0)",
        ),
        (
            "L1 steps change the values with the least gradients",
            "jnp.where(magnitude >= least, jnp.sign(gradient), 0)",
            "jnp.where(magnitude < least, jnp.sign(gradient), 0)",
        ),
        (
            "L1 steps push pixels out of the box",
            "jnp.where(can_move, gradient, 0)",
            "gradient",
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
            "starts are inside the sphere, not on it",
            "images + as_column(radius) * delta / length",
            "images + as_column(radius) * delta",
            "images + radius * delta / length",
            "images + radius * delta",
            "images + radius * delta / threat.length(delta)",
            "images + radius * delta",
        ),
    ),
    *_of(
        "eot",
        "attacks/test_eot",
        (
            "gradients are summed, not averaged",
            "total.gradient / num_samples",
            "total.gradient",
            "lambda x: x / noise.num_samples",
            "lambda x: x",
        ),
        (
            "mean softmax is a sum",
            "total - jnp.log(jnp.asarray(noise.num_samples, total.dtype))",
            "total",
            "total - jnp.log(noise.num_samples)",
            "total",
        ),
        (
            "gradient of the mean softmax without its weights",
            "slope * jnp.exp(logits - mean)",
            "slope",
        ),
        (
            "one noise sample too many in the last chunk",
            "numbers < noise.num_samples",
            "numbers <= noise.num_samples",
            "draws < noise.num_samples",
            "draws <= noise.num_samples",
        ),
        (
            "all noise samples are equal",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, 0 * numbers)",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, draws)",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, 0 * draws)",
        ),
    ),
    *_of(
        "gradient_estimate",
        "attacks/test_nes",
        (
            "both queries of a pair on one side",
            "jnp.concatenate([u, -u])",
            "jnp.concatenate([u, u])",
        ),
        (
            "scale of the estimate",
            "gradient / (2 * num_pairs * sampling.sigma)",
            "gradient / (num_pairs * sampling.sigma)",
        ),
        (
            "sign of the estimate",
            "values[:pairs_at_once] - values[pairs_at_once:]",
            "values[pairs_at_once:] - values[:pairs_at_once]",
            "values[:num_at_once] - values[num_at_once:]",
            "values[num_at_once:] - values[:num_at_once]",
        ),
        ("sigma is ignored", "sampling.sigma * jnp.concatenate", "1e-3 * jnp.concatenate"),
        (
            "mean of the objective",
            "total.values / (2 * num_pairs)",
            "total.values / num_pairs",
            "value / (2 * num_pairs)",
            "value / num_pairs",
        ),
        (
            "both queries of a pair with the same noise",
            "jnp.concatenate([pairs, -1 - pairs])",
            "jnp.concatenate([pairs, pairs])",
        ),
    ),
    *_of(
        "search",
        "attacks/test_best_iterate attacks/test_search",
        (
            "noise samples of a success check do not count as queries",
            "jnp.where(is_clean_image, 0, method.cost(state)) + check_cost",
            "jnp.where(is_clean_image, 0, method.cost(state)) + 1",
            "jnp.where(first, 0, how.cost(found)) + look_cost",
            "jnp.where(first, 0, how.cost(found)) + 1",
        ),
        (
            "the budget may be exceeded",
            "state.queries + cost(state) <= problem.num_queries",
            "state.queries + 1 <= problem.num_queries",
            "found.queries + cost(found) <= task.num_queries",
            "found.queries + 1 <= task.num_queries",
        ),
        (
            "the last query is not spent",
            "state.queries + cost(state) <= problem.num_queries",
            "state.queries + cost(state) < problem.num_queries",
            "found.queries + cost(found) <= task.num_queries",
            "found.queries + cost(found) < task.num_queries",
        ),
        (
            "a random search accepts smaller margins",
            "Decision(margins > state.margins,",
            "Decision(jnp.ones_like(state.success),",
            "kept = margins > found.margins",
            "kept = jnp.ones_like(found.success)",
        ),
        (
            "resumed examples skip steps",
            "rows = affordable & (state.steps == step)",
            "rows = affordable",
            "rows = ready & (found.steps == step)",
            "rows = ready",
        ),
    ),
    *_of(
        "search",
        "attacks/test_nes attacks/test_search",
        (
            "the last success check does not count as a query",
            "success=margins > 0, queries=state.queries + check_cost",
            "success=margins > 0",
            "success=margins > 0, queries=found.queries + look_cost)",
            "success=margins > 0)",
        ),
    ),
    *_of(
        "random_search",
        "attacks/test_search",
        (
            "a proposal of random search counts as a query",
            "constant_cost(0)",
            "constant_cost(1)",
            "always(0)",
            "always(1)",
        ),
    ),
    *_of(
        "nes",
        "attacks/test_nes",
        (
            "momentum of NES",
            "(1 - momentum) * estimate.gradient",
            "estimate.gradient",
            "(1 - momentum) * gradient",
            "gradient",
        ),
        (
            "step size on a plateau of NES",
            "jnp.maximum(step_size / 2",
            "jnp.maximum(step_size / 4",
        ),
    ),
    *_of(
        "pgd",
        "attacks/test_pgd",
        (
            "PGD descends",
            "moved = ascend(threat, images, current.images, estimate.gradient, length, eps)",
            "moved = ascend(threat, images, current.images, -estimate.gradient, length, eps)",
            "+ as_column(step_size) * threat.steepest(current.images, estimate.gradient)",
            "- as_column(step_size) * threat.steepest(current.images, estimate.gradient)",
            "+ step_size * threat.steepest(current.images, estimate.gradient)",
            "- step_size * threat.steepest(current.images, estimate.gradient)",
            "current.images + step_size * threat.steepest(estimate.gradient) - images",
            "current.images - step_size * threat.steepest(estimate.gradient) - images",
            "found.images + step_size * threat.steepest(here.gradient) - images",
            "found.images - step_size * threat.steepest(here.gradient) - images",
            "adversarial + step_size * threat.steepest(gradient) - images",
            "adversarial - step_size * threat.steepest(gradient) - images",
        ),
        (
            "PGD keeps its worst restart",
            "better = margins > kept_margins",
            "better = margins < kept_margins",
            "better = new_scores > scores",
            "better = new_scores < scores",
        ),
        ("step size of FGSM", "step_size=eps,", "step_size=eps / 2,"),
        (
            "radius of the noise of N-FGSM",
            "inputs.example_ids, images, 2 * eps)",
            "inputs.example_ids, images, eps)",
            "radius = jnp.asarray(2 * eps,",
            "radius = jnp.asarray(eps,",
        ),
    ),
    *_of(
        "pgd",
        "attacks/test_pgd_randomness",
        (
            "the same noise in every step of PGD",
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
            'Stage(APGD, {"loss": "dlr", "num_restarts": 5})',
            'Stage(APGD, {"loss": "dlr", "num_restarts": 1})',
            '"apgd_dlr": {**_DLR, "num_restarts": 5}',
            '"apgd_dlr": {**_DLR, "num_restarts": 1}',
        ),
        (
            "both FABs of plus are targeted",
            '"num_targets": 0, "num_restarts": 5}',
            '"num_targets": 9, "num_restarts": 5}',
        ),
        ("queries of Square", '"num_queries": 5000}', '"num_queries": 500}'),
        (
            "noise samples of rand",
            "_NUM_NOISE_SAMPLES = 20",
            "_NUM_NOISE_SAMPLES = 1",
            '{"num_noise_samples": 20}',
            '{"num_noise_samples": 1}',
        ),
        (
            "standard without FAB",
            '"apgd_t": apgd_t, "fab_t": fab_t, "square": square}',
            '"apgd_t": apgd_t, "square": square}',
            '"apgd_t": _APGD_T, "fab_t": _FAB_T, "square": _SQUARE}',
            '"apgd_t": _APGD_T, "square": _SQUARE}',
        ),
        (
            "standard with APGD-T before APGD-CE",
            '{"apgd_ce": apgd_ce, "apgd_t": apgd_t,',
            '{"apgd_t": apgd_t, "apgd_ce": apgd_ce,',
            '{"apgd_ce": _CE, "apgd_t": _APGD_T,',
            '{"apgd_t": _APGD_T, "apgd_ce": _CE,',
        ),
        (
            "few classes: one target too few",
            "min(_NUM_TARGETS, num_classes - 1)",
            "min(_NUM_TARGETS, max(num_classes - 2, 1))",
            'min(arguments["num_targets"], num_classes - 1)',
            'min(arguments["num_targets"], max(num_classes - 2, 1))',
        ),
        (
            "few classes: more targets than other classes",
            "min(_NUM_TARGETS, num_classes - 1)",
            "_NUM_TARGETS",
            'min(arguments["num_targets"], num_classes - 1)',
            'arguments["num_targets"]',
        ),
    ),
    *_of(
        "autoattack_flags",
        "attacks/test_autoattack_versions attacks/test_autoattack",
        ("no flag for three classes", "num_classes < 4", "num_classes < 3"),
    ),
    *_of(
        "ensemble",
        "attacks/test_autoattack_versions attacks/test_autoattack",
        (
            "misclassified clean images count as robust",
            "np.where(wrong, CLEAN, ROBUST)",
            "np.where(wrong, ROBUST, ROBUST)",
            "np.where(wrong, CLEAN, STANDING)",
            "np.where(wrong, STANDING, STANDING)",
        ),
        (
            "accuracies subtract the clean errors twice",
            "robust = len(self.broken_by) - np.cumsum(fooled)",
            "robust = len(self.broken_by) - np.cumsum(fooled) - fooled[0]",
            "left = len(self.broken_by) - np.cumsum(broken)",
            "left = len(self.broken_by) - np.cumsum(broken) - broken[0]",
        ),
    ),
    *_of(
        "losses",
        "core/test_losses attacks/test_apgd",
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
            "order of the arguments in the KL divergence",
            "jnp.exp(expected) * (expected - actual)",
            "jnp.exp(actual) * (actual - expected)",
        ),
        (
            "the DLR of two classes divides by zero",
            "if logits.shape[-1] < 3:",
            "if logits.shape[-1] < 2:",
        ),
    ),
    *_of(
        "train_step",
        "training/test_step",
        (
            "gradients are summed over devices",
            "lax.pmean(gradients, AXIS)",
            "lax.psum(gradients, AXIS)",
            "lax.pmean((gradients, metrics), AXIS)",
            "lax.psum((gradients, metrics), AXIS)",
        ),
        (
            "no average over devices",
            "lax.pmean(gradients, AXIS)",
            "gradients",
            "lax.pmean((gradients, metrics), AXIS)",
            "(gradients, metrics)",
        ),
        (
            "training on clean images only",
            "jnp.concatenate([adversarial, batch.images[first_clean:]])",
            "batch.images",
            "images = jnp.concatenate([adversarial, clean[n:]])",
            "images = clean",
        ),
        (
            "step of the moving average",
            "setup.average(ema, variables, step)",
            "setup.average(ema, variables, state.step)",
            "moving_average(ema, variables, setup.ema_decay, step)",
            "moving_average(ema, variables, setup.ema_decay, state.step)",
            "moving_average(ema, variables, recipe.ema_decay, step)",
            "moving_average(ema, variables, recipe.ema_decay, state.step)",
        ),
        (
            "the same noise in every training step",
            'stream(setup.seed, "noise", state.step)',
            'stream(setup.seed, "noise", 0)',
            'stream(recipe.seed, "noise", state.step)',
            'stream(recipe.seed, "noise", 0)',
        ),
        (
            "the same attack key in every training step",
            'stream(setup.seed, "attack", state.step)',
            'stream(setup.seed, "attack", 0)',
            'stream(recipe.seed, "attack", state.step)',
            'stream(recipe.seed, "attack", 0)',
        ),
        (
            "AWP trains at the weights as they are",
            "params = perturb_weights(params, gradients, setup.awp_gamma)",
            "perturb_weights(params, gradients, setup.awp_gamma)",
        ),
    ),
    *_of(
        "training_batch",
        "training/test_step",
        (
            "synthetic images are never attacked",
            "round(setup.num_attacked * setup.num_synthetic / num_examples)",
            "0 * num_examples",
        ),
        (
            "label smoothing of real images instead of synthetic ones",
            """jnp.full(num_real, setup.label_smoothing),
        jnp.full(setup.num_synthetic, setup.synthetic_smoothing),""",
            """jnp.full(num_real, setup.synthetic_smoothing),
        jnp.full(setup.num_synthetic, setup.label_smoothing),""",
            "mix(jnp.zeros(num_real), jnp.full(setup.num_synthetic, setup.label_smoothing))",
            "mix(jnp.full(num_real, setup.label_smoothing), jnp.zeros(setup.num_synthetic))",
        ),
    ),
    *_of(
        "training_losses",
        "training/test_training_losses training/test_step",
        (
            "denominator of TRADES",
            "beta * divergences.sum() / len(clean)",
            "beta * divergences.mean()",
            "divergences.sum() / len(labels)",
            "divergences.mean()",
        ),
        (
            "order of the divergence in TRADES",
            "kl_divergence(clean[: len(adversarial)], adversarial)",
            "kl_divergence(adversarial, clean[: len(adversarial)])",
            "kl_divergence(logits[:n], adversarial_logits)",
            "kl_divergence(adversarial_logits, logits[:n])",
        ),
        (
            "beta of TRADES",
            "+ beta * divergences",
            "+ divergences",
            "(setup.trades_beta or 0.0) * ",
            "",
        ),
        ("the boosted term of MART", "labels) - margin", "labels) + margin"),
        ("weight of the misclassified images in MART", "1 - jnp.exp(-cross", "jnp.exp(-cross"),
        ("half of the squared error of IKL", ".sum(axis=-1) / 2", ".sum(axis=-1)"),
        ("class means of IKL on one device", "lax.psum((is_class.T", "((is_class.T"),
        (
            "a gradient through the class means of IKL",
            "lax.stop_gradient(totals[0] / jnp.maximum(totals[1], 1))",
            "totals[0] / jnp.maximum(totals[1], 1)",
        ),
        (
            "the squared error of IKL does not move the clean logits",
            "at_least_float32(clean[:n]) - at_least",
            "lax.stop_gradient(at_least_float32(clean[:n])) - at_least",
        ),
        (
            "a gradient through the soft labels of IKL",
            "lax.stop_gradient(jax.nn.softmax(at_least_float32(clean[:n])))",
            "jax.nn.softmax(at_least_float32(clean[:n]))",
        ),
    ),
    *_of(
        "cutmix",
        "data/test_cutmix",
        ("labels of the smaller part", "share[:, 0] > 0.5", "share[:, 0] < 0.5"),
        ("targets are not mixed", "(1 - share) * targets + share * targets[partner]", "targets"),
        (
            "the side is the share of the area",
            "jnp.sqrt(jax.random.uniform(share_key))",
            "jax.random.uniform(share_key)",
        ),
    ),
    *_of(
        "gradient_alignment",
        "training/test_gradient_alignment",
        (
            "a gradient through the clean image",
            "lax.stop_gradient(input_gradient(images))",
            "input_gradient(images)",
        ),
        ("zero gradients count", "lax.psum(counts.sum(), AXIS)", "lax.psum(len(images), AXIS)"),
    ),
    *_of(
        "weight_perturbation",
        "training/test_weight_perturbation",
        ("AWP descends", "weights + gamma * length", "weights - gamma * length"),
        ("AWP moves vectors", "weights.ndim < 2", "weights.ndim < 1"),
    ),
    *_of(
        "gan_step",
        "gan/test_gan_train",
        (
            "sign of the generator's loss",
            "return -logits.mean(), batch_stats",
            "return logits.mean(), batch_stats",
            "return -logits.mean(), changed",
            "return logits.mean(), changed",
        ),
        (
            "sign in the hinge loss of real images",
            "nn.relu(1 - real_logits)",
            "nn.relu(1 + real_logits)",
            "nn.relu(1 - of_real)",
            "nn.relu(1 + of_real)",
        ),
        (
            "sign in the hinge loss of samples",
            "nn.relu(1 + fake_logits)",
            "nn.relu(1 - fake_logits)",
            "nn.relu(1 + of_fake)",
            "nn.relu(1 - of_fake)",
        ),
        (
            "linear loss of real images",
            "nn.relu(1 - real_logits).mean()",
            "(1 - real_logits).mean()",
            "nn.relu(1 - of_real).mean()",
            "(1 - of_real).mean()",
        ),
        (
            "linear loss of samples",
            "nn.relu(1 + fake_logits).mean()",
            "(1 + fake_logits).mean()",
            "nn.relu(1 + of_fake).mean()",
            "(1 + of_fake).mean()",
        ),
        (
            "position of the hinge",
            "nn.relu(1 - real_logits)",
            "nn.relu(0 - real_logits)",
            "nn.relu(1 - of_real)",
            "nn.relu(0 - of_real)",
        ),
        (
            "the discriminator gets the classes of real images for samples",
            "classes = jnp.concatenate([labels, fake_labels])",
            "classes = jnp.concatenate([labels, labels])",
        ),
        (
            "the generator's loss ignores the class",
            "setup.discriminator.apply(state.discriminator, images, labels)",
            "setup.discriminator.apply(state.discriminator, images, 0 * labels)",
            "recipe.discriminator.apply(state.discriminator, images, labels)",
            "recipe.discriminator.apply(state.discriminator, images, 0 * labels)",
        ),
        (
            "variance of the averaged generator",
            '"var": norm["var"] + norm["mean"] ** 2}',
            '"var": norm["var"]}',
        ),
        (
            "learning rate of the generator's optimizer",
            "adam(config.optimizer.generator_learning_rate)",
            "adam(config.optimizer.discriminator_learning_rate)",
        ),
    ),
    *_of(
        "langevin",
        "gan/test_langevin",
        ("length of the drift", "step_size / 2 * gradient", "step_size * gradient"),
        ("standard deviation of the noise", "jnp.sqrt(step_size) * noise", "step_size * noise"),
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
        "gan_sampling",
        "gan/test_gan_train",
        (
            "sign of the discriminator in the energy of DDLS",
            "(latents**2).sum(axis=-1) / 2 - logits",
            "(latents**2).sum(axis=-1) / 2 + logits",
            "(latents**2).sum(axis=-1) / 2 - realness",
            "(latents**2).sum(axis=-1) / 2 + realness",
        ),
        (
            "prior in the energy of DDLS",
            "(latents**2).sum(axis=-1) / 2 - logits",
            "(latents**2).sum(axis=-1) - logits",
            "(latents**2).sum(axis=-1) / 2 - realness",
            "(latents**2).sum(axis=-1) - realness",
        ),
        (
            "the energy of DDLS ignores the class",
            "setup.discriminator.apply(discriminator, images, labels)",
            "setup.discriminator.apply(discriminator, images, 0 * labels)",
            "recipe.discriminator.apply(discriminator, images, labels)",
            "recipe.discriminator.apply(discriminator, images, 0 * labels)",
        ),
        ("pixels are rounded down", "jnp.round(images * 255)", "jnp.floor(images * 255)"),
        (
            "the least probable samples are accepted",
            "probabilities >= sampling.min_probability",
            "probabilities <= sampling.min_probability",
            "labels] >= sampling.min_probability",
            "labels] <= sampling.min_probability",
        ),
    ),
    *_of(
        "smoothing",
        "evaluation/test_smoothing",
        (
            "radius without sigma",
            "exact = sigma * ndtri",
            "exact = ndtri",
            "radii = sigma * ndtri",
            "radii = ndtri",
        ),
        (
            "selection and estimation share the noise",
            "_count(counts_fn, 1, num_estimation)",
            "_count(counts_fn, 0, num_estimation)",
            "counts_fn(1, num_estimation)",
            "counts_fn(0, num_estimation)",
        ),
        (
            "two-sided bound",
            "betaincinv(some, num_samples - some + 1, failure)",
            "betaincinv(some, num_samples - some + 1, failure / 2)",
        ),
        ("bound for one success fewer", "num_samples - some + 1", "num_samples - some"),
        (
            "standard deviation of the noise",
            "images + sigma * normal",
            "images + sigma**2 * normal",
        ),
        (
            "threshold of abstention",
            "np.maximum(lower, 0.5)",
            "np.maximum(lower, 0.6)",
            "lower > 0.5",
            "lower > 0.6",
        ),
        (
            "consecutive parts repeat the noise",
            "jax.random.fold_in(key, first + i)",
            "jax.random.fold_in(key, i)",
        ),
        ("p-value of a prediction", ".pvalue > failure", ".pvalue > 2 * failure"),
    ),
    *_of(
        "metrics",
        "evaluation/test_metrics",
        ("level of the confidence interval", "proportion_ci(0.95,", "proportion_ci(0.9,"),
        ("method of the confidence interval", 'method="wilson"', 'method="exact"'),
    ),
    *_of(
        "curriculum",
        "training/test_curriculum study/test_costs",
        (
            "the curriculum is one epoch ahead",
            "    t = epoch / num_epochs\n",
            "    t = (epoch + 1) / num_epochs\n",
        ),
        ("steps lost to rounding", "attack.num_steps_end) + 1e-9)", "attack.num_steps_end))"),
        (
            "cost of the clean batch of TRADES",
            "1 + attack.fraction * make_loss(train).needs_clean",
            "1",
            '1 + attack.fraction * (config.train.loss == "trades")',
            "1",
        ),
        (
            "cost of the attack ignores the attacked share",
            "update + attack.fraction * budget.num_steps",
            "update + budget.num_steps",
            "update + attack.fraction * num_steps",
            "update + num_steps",
        ),
        (
            "duration of an update",
            "gradients + kernels for",
            "gradients + 1 for",
            "gradients + 2 for",
            "gradients + 1 for",
        ),
    ),
    *_of(
        "optimizer",
        "training/test_optimizer gan/test_gan_train",
        ("warm-up of the moving average", "step / (step + 10)", "step / (step + 1)"),
        (
            "SWA starts a step late",
            "jnp.maximum(step - first_step, 1)",
            "jnp.maximum(step - first_step - 1, 1)",
        ),
        (
            "the schedule ends after the training",
            "num_epochs * steps_per_epoch - warmup_steps",
            "num_epochs * steps_per_epoch",
        ),
        (
            "Nesterov momentum",
            "nesterov=optimizer.nesterov)",
            "nesterov=True)",
            "momentum=optimizer.momentum)",
            "momentum=optimizer.momentum, nesterov=True)",
        ),
        (
            "weight decay of the scale of PNI's noise",
            "\\['alpha'\\]$",
            "\\['beta'\\]$",
        ),
    ),
    *_of(
        "gan_metrics",
        "gan/test_gan_metrics",
        ("cross term of the Fréchet distance", "- 2 * cross", "- cross"),
        ("biased MMD", "size * (size - 1)", "size * size"),
        ("degree of the kernel of the MMD", "x.shape[1] + 1) ** 3", "x.shape[1] + 1) ** 2"),
        ("neighbours of precision and recall", "_NUM_NEIGHBOURS = 3", "_NUM_NEIGHBOURS = 2"),
        (
            "precision and recall are exchanged",
            "float(_covered(fake, real).mean()), float(_covered(real, fake).mean())",
            "float(_covered(real, fake).mean()), float(_covered(fake, real).mean())",
        ),
        ("distance of duplicates is not squared", "block <= distance**2", "block <= distance"),
    ),
    # Behaviour that is newer than commit b4ff9a4: earlier trees lack the snippets.
    *_of(
        "tracing",
        "attacks/test_tracing attacks/test_snapshot attacks/test_autoattack_versions",
        ("models of one class are attacked", "if output.shape[1] < 2:", "if output.shape[1] < 1:"),
        (
            "programs with different derivatives are equal",
            "if gradients:\n        description =",
            "if False:\n        description =",
        ),
        (
            "the description omits the parameters of operations",
            "            _describe_parameters(equation),\n",
            "",
        ),
        (
            "constants of inner jitted functions stay in the program",
            "if not any(map(_has_constants,",
            "if any(map(_has_constants,",
        ),
        (
            "models of equal structure evict each other from the cache",
            "tuple(map(id, arrays)), call_types",
            "len(arrays), call_types",
            "tuple(map(id, arrays)), shown",
            "len(arrays), shown",
        ),
        (
            "a trace with other arrays of the same types is reused",
            "tuple(map(id, arrays)), call_types\n    trace = _lookup(_traces, cache_key)\n"
            "    if trace and all(ref() is array for ref, array in "
            "zip(trace.arrays, arrays, strict=True)):",
            "len(arrays), call_types\n    trace = _lookup(_traces, cache_key)\n    if trace:",
            "    known = _kept(_unchanged, place)\n    if known and all(",
            "    known = next(iter(_unchanged.values()), None)\n    if known or all(",
        ),
        ("a trace under other settings is reused", "gradients, _context()\n", "gradients\n"),
        ("gradients flow into the weights", "return jax.lax.stop_gradient(array)", "return array"),
    ),
    *_of(
        "snapshot",
        "attacks/test_snapshot",
        (
            "globals are ignored",
            "return function.__code__, described, self.describe(reached)",
            "return function.__code__, described",
        ),
        (
            "closure cells are ignored",
            "self._all(cells, function.__defaults__,",
            "self._all(function.__defaults__,",
        ),
        (
            "NumPy arrays are constants",
            "            case jax.Array():",
            "            case np.ndarray():\n                return 'array'\n            case jax.Array():",  # noqa: E501
        ),
        (
            "methods of modules are ignored",
            "kind, self._all(methods, constants, kind.__bases__)",
            "kind",
        ),
    ),
    *_of(
        "checks",
        "attacks/test_precision attacks/test_checks attacks/test_tracing",
        (
            "half precision is not cast",
            "images = at_least_float32(images)\n    if",
            "if",
            "images = at_least_single(images)\n    if",
            "if",
        ),
        ("rounding beyond [0, 1] is not clipped", "else jnp.clip(images, 0, 1)", "else images"),
        (
            "targets may equal the labels",
            "        if num_equal:\n",
            "        if not num_equal:\n",
            "        if same:\n",
            "        if not same:\n",
        ),
        ("labels beyond the classes are accepted", "< num_classes:", "< num_classes + 90:"),
    ),
    *_of(
        "image_range",
        "attacks/test_precision attacks/test_checks attacks/test_tracing",
        (
            "images far outside [0, 1] are accepted",
            "tolerance = max(_ROUNDING,",
            "tolerance = max(1.0,",
        ),
    ),
    *_of(
        "arguments",
        "attacks/test_checks test_config",
        ("counts beyond int32 are accepted", "LARGEST_COUNT = 2**31 - 1", "LARGEST_COUNT = 2**40"),
        (
            "chunks of one query are accepted",
            '"chunk_size": integer_rule(2)',
            '"chunk_size": integer_rule(1)',
            '"chunk_size": _count(2)',
            '"chunk_size": _count(1)',
        ),
        (
            "as many targets as classes are accepted",
            "num_targets >= num_classes",
            "num_targets > num_classes",
        ),
    ),
    *_of(
        "logits",
        "attacks/test_nonfinite",
        (
            "infinite logits count as finite",
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
        "eot",
        "attacks/test_nonfinite",
        (
            "NaN gradients make NaN images",
            "return jnp.where(finite[..., None, None, None], gradients, 0), ~finite",
            "return gradients, ~finite",
        ),
        (
            "nonfinite gradients are not counted",
            "gradient, nonfinite.astype(jnp.int32))",
            "gradient, 0 * nonfinite.astype(jnp.int32))",
        ),
    ),
    *_of(
        "forget_unconfirmed",
        "attacks/test_batch_independence attacks/test_nonfinite",
        (
            "an unconfirmed success bars farther ones",
            "distance = jnp.where(~result.success & (distance <= eps), jnp.inf, distance)",
            "pass",
            "distance = jnp.where(~found.success & (distance <= eps), jnp.inf, distance)",
            "pass",
        ),
    ),
    *_of(
        "fab",
        "attacks/test_batch_independence attacks/test_nonfinite",
        (
            "examples skip steps of FAB",
            "rows = rows & (result.steps == step)",
            "pass",
            "rows = ready & (found.steps == step)",
            "rows = ready",
        ),
    ),
    *_of(
        "apgd",
        "attacks/test_batch_independence",
        (
            "examples skip steps of APGD",
            "rows = rows & (result.steps == step)",
            "pass",
            "rows = ready & (found.steps == step)",
            "rows = ready",
        ),
    ),
    *_of(
        "pgd",
        "attacks/test_batch_independence",
        (
            "reference and score share a key",
            "reference_key, score_key = jax.random.split(score_key)",
            "reference_key = score_key",
        ),
    ),
    *_of(
        "autoattack_flags",
        "attacks/test_nonfinite",
        ("no flag for batch statistics", "if probed.depends_on_batch.any():", "if False:"),
    ),
    # Behaviour that is newer than commit 8f85e50: earlier trees lack most of the snippets.
    *_of(
        "convolution",
        "attacks/test_fast_convolutions models/test_layers",
        (
            "the dilation is not part of the mirrored padding",
            "margins = [step * (size - 1) for",
            "margins = [size - 1 for",
        ),
        ("negative padding reaches XLA", "if min(min(pads)) < 0:", "if False:"),
        (
            "a group reads the next group",
            "jnp.eye(per_part, dtype=bool)",
            "jnp.roll(jnp.eye(per_part, dtype=bool), 1, 0)",
        ),
        (
            "the depthwise gradient is not mirrored",
            "gradient, kernel[::-1, ::-1], (1, 1), tuple(mirrored_pads)",
            "gradient, kernel, (1, 1), tuple(mirrored_pads)",
        ),
        (
            "the depthwise kernel has no gradient",
            "lambda kernel: _sum_of_shifts(learned[0], kernel,",
            "lambda kernel: _sum_of_shifts(learned[0], 0 * kernel,",
        ),
        (
            "the last maximum of a window gets its gradient",
            "in reversed(list(enumerate(offsets))):",
            "in enumerate(offsets):",
        ),
    ),
    *_of(
        "fast_convolutions",
        "attacks/test_fast_convolutions",
        (
            "outputs are not transposed back",
            "return outputs.transpose(from_nhwc)",
            "return outputs",
        ),
        ("precision is dropped", 'params["precision"]', "None"),
        ("loops are left alone", '"scan", "while",', ""),
        ("the switch does nothing", "return _is_on.value and", "return"),
    ),
]


def main() -> None:
    """Try the mutations, print a line for each and a summary, and write `mutations.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help='run mutations whose "file: description" contains this text')
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="checkout to test; by default that of this script"
    )
    parser.add_argument("--out", type=Path, help="folder of mutations.json; by default none")
    parser.add_argument(
        "--check", action="store_true", help="check that the snippets are found, and run no tests"
    )
    options = parser.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if not options.only or options.only in f"{mutation.file}: {mutation.breaks}"
    ]
    if not chosen:
        sys.exit(
            f"--only is {options.only!r}: no mutation has this text in its file or description"
        )
    began, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="jaxadv-mutations-") as folder:
        tree = _copy(options.tree, Path(folder))
        if not options.check:
            _check_unmutated(tree, chosen)
        for number, mutation in enumerate(chosen, start=1):
            result = _try(tree, mutation, run_tests=not options.check)
            results.append(result)
            print(_line(f"{number}/{len(chosen)}", mutation, result), flush=True)
            if options.out:  # after each mutation, so that an interrupted run leaves its results
                _write(options, results, time.monotonic() - began)
    counts = _counts(results)
    print(", ".join(f"{count} {status}" for status, count in counts.items()), f"of {len(results)}")
    sys.exit(counts.get(FOUND if options.check else KILLED, 0) < len(results))


def _copy(checkout: Path, folder: Path) -> Path:
    """Copy a tree, so that the checkout itself is never mutated."""
    for name in COPIED:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder.resolve()


def _check_unmutated(tree: Path, chosen: Iterable[Mutation]) -> None:
    """Exit unless the tests import the copy, and pass on it without a mutation."""
    command = [sys.executable, "-c", "import jaxadv; print(jaxadv.__file__)"]
    done = subprocess.run(
        command, cwd=tree / "tests", env=_environment(tree), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    imported = Path(done.stdout.strip()).resolve()
    if imported != tree / "jaxadv/__init__.py":
        sys.exit(f"the tests import {imported}, not the copy in {tree}: uninstall jaxadv")
    tests = dict.fromkeys(test for mutation in chosen for test in _present(tree, mutation))
    began = time.monotonic()
    code, output = _pytest(tree, tuple(tests), TIMEOUT * max(len(tests), 1)) if tests else (0, "")
    if code:
        print(output)
        sys.exit("the tests fail without a mutation: fix them first")
    print(f"unmutated: {len(tests)} test files pass ({time.monotonic() - began:.0f} s)", flush=True)


def _try(tree: Path, mutation: Mutation, *, run_tests: bool) -> dict:
    """Apply a mutation, run its tests, and restore the tree."""
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
        result |= {"old": old, "new": new, "status": FOUND}
        if not tests:
            result["status"] = "no tests"
        elif run_tests:
            path.write_text(text.replace(old, new))
            try:
                code, output = _pytest(tree, tests, TIMEOUT)
            finally:
                path.write_text(text)
            # Exit status 1 is a failed test, 2 an error during collection, 5 an empty collection.
            result["status"] = {0: SURVIVED, 1: KILLED, None: "timeout"}.get(code, "error")
            failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output, re.MULTILINE)
            result["failed"] = failed[1] if failed else None
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def _present(tree: Path, mutation: Mutation) -> tuple[str, ...]:
    """Return the test files of a mutation that exist in the tree."""
    return tuple(test for test in mutation.tests if (tree / test).exists())


def _pytest(tree: Path, tests: tuple[str, ...], timeout: float) -> tuple[int | None, str]:
    """Run test files; return the exit status of pytest, None after a timeout, and its output."""
    try:
        done = subprocess.run(
            [*PYTEST, *tests], cwd=tree, env=_environment(tree), capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def _environment(tree: Path) -> dict[str, str]:
    """Return an environment in which Python imports the copy, not the installed package."""
    # Bytecode is valid for the time and size of its source, and a mutation may change neither.
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def _line(number: str, mutation: Mutation, result: dict) -> str:
    name = f"{mutation.file}: {mutation.breaks}"
    failed = result["failed"] or ""
    return f"{number:>8}  {result['status']:9}  {name:75} {result['seconds']:6.1f} s  {failed}"


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
    """Return the commit of the tested tree, which may differ from that of this script."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tree), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "commit": git("rev-parse", "--short", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", *COPIED)),
    }


if __name__ == "__main__":
    main()
