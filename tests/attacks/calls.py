"""Every attack with a small budget, for tests of what all of them promise."""

import jax

from jaxadv.attacks import ATTACKS, Queried, autoattack, n_fgsm

CALLS = {
    "fgsm": {"eps": 0.1},
    "n_fgsm": {"eps": 0.05, "step_size": 0.0},
    "pgd": {"eps": 0.1, "step_size": 0.05, "num_steps": 3, "num_restarts": 2},
    "apgd": {"eps": 0.1, "num_steps": 4, "num_targets": 1, "loss": "dlr"},
    "fab": {"eps": 0.1, "num_steps": 3, "num_targets": 1},
    "nes": {
        "eps": 0.1,
        "step_size": 0.05,
        "num_queries": 12,
        "samples_per_gradient": 4,
        "plateau_length": 2,
    },
    "nes_label_only": {
        "eps": 0.1,
        "num_queries": 30,
        "samples_per_gradient": 2,
        "label_samples": 2,
    },
    "square": {"eps": 0.1, "num_queries": 8},
    "random_search": {"eps": 0.1, "num_queries": 4},
}
"""Of all attacks but AutoAttack, which is no function of JAX."""

FUNCTIONS = {**ATTACKS, "n_fgsm": n_fgsm}


def run(name, logits_fn, images, labels, key=None, **changes):
    """The whole result of an attack: images, or a `Queried`."""
    key = jax.random.key(0) if key is None else key
    return FUNCTIONS[name](key, logits_fn, images, labels, **{**CALLS[name], **changes})


def images_of(found):
    return found.images if isinstance(found, Queried) else found


def run_autoattack(logits_fn, images, labels, **changes):
    options = {"eps": 0.1, "batch_size": 64} | changes
    return autoattack(jax.random.key(0), logits_fn, images, labels, **options)
