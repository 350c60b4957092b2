"""Every attack with a small budget, for tests of properties that all attacks share."""

from importlib import import_module

import jax
import pytest

from jaxadv.attacks import ATTACKS, AttackResult, autoattack, n_fgsm
from jaxadv.attacks.ensemble import Stage

# All attacks but AutoAttack, which runs outside of `jit`.
CALLS = {
    "fgsm": {"eps": 0.1},
    "n_fgsm": {"eps": 0.05, "step_size": 0.0},
    "pgd": {"eps": 0.1, "step_size": 0.05, "num_steps": 3, "num_restarts": 2},
    "mi_fgsm": {"eps": 0.1, "step_size": 0.05, "num_steps": 3, "diversity": 0.5, "kernel_size": 3},
    "apgd": {"eps": 0.1, "num_steps": 4, "num_targets": 1, "loss": "dlr"},
    "fab": {"eps": 0.1, "num_steps": 3, "num_targets": 1},
    "fmn": {"eps": 0.1, "num_steps": 4},
    "ddn": {"eps": 2.0, "num_steps": 4, "norm": "l2"},
    "cw": {"eps": 2.0, "num_steps": 4, "num_searches": 2, "norm": "l2"},
    "deepfool": {"eps": 0.1, "num_steps": 4, "norm": "linf"},
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
    "hop_skip_jump": {
        "eps": 2.0,
        "num_queries": 40,
        "initial_samples": 2,
        "norm": "l2",
    },
    "rays": {"eps": 0.1, "num_queries": 12},
    "sparse_rs": {"eps": 3, "num_queries": 8, "norm": "l0"},
    "square": {"eps": 0.1, "num_queries": 8},
    "random_search": {"eps": 0.1, "num_queries": 4},
}

# Not the function of the same name in `jaxadv.attacks`.
AUTOATTACK_MODULE = import_module("jaxadv.attacks.autoattack")
FUNCTIONS = {**{name: spec.attack_fn for name, spec in ATTACKS.items()}, "n_fgsm": n_fgsm}
NORMS = {**{name: spec.norms for name, spec in ATTACKS.items()}, "n_fgsm": ("linf",)}
RESUMABLE = [name for name, spec in ATTACKS.items() if spec.resumable]
BLACK_BOX = [name for name, spec in ATTACKS.items() if not spec.uses_gradients]


def run(name, logits_fn, images, labels, key=None, **changes):
    """Run an attack; return its images or `AttackResult`."""
    key = jax.random.key(0) if key is None else key
    return FUNCTIONS[name](key, logits_fn, images, labels, **{**CALLS[name], **changes})


def ids_of(name, ids):
    """Return the argument `example_ids`, if the attack has it."""
    takes_ids = name == "n_fgsm" or ATTACKS[name].takes_example_ids
    return {"example_ids": ids} if takes_ids else {}


def skip_other_norms(name, norm):
    if norm not in NORMS[name]:
        pytest.skip(f"{name} has no norm {norm}")


def images_of(result):
    return result.images if isinstance(result, AttackResult) else result


def run_autoattack(logits_fn, images, labels, **changes):
    options = {"eps": 0.1, "batch_size": 64} | changes
    return autoattack(jax.random.key(0), logits_fn, images, labels, **options)


def patch_stages(monkeypatch, versions):
    """Let AutoAttack run these attacks: version -> name -> arguments, with the key "attack"."""

    def make_stage(most_targets, attack, **arguments):
        if "num_targets" in arguments:
            arguments["num_targets"] = min(arguments["num_targets"], most_targets)
        return Stage(ATTACKS[attack], arguments)

    def stages(norm, most_targets):
        return {
            version: {name: make_stage(most_targets, **call) for name, call in calls.items()}
            for version, calls in versions.items()
        }

    monkeypatch.setattr(AUTOATTACK_MODULE, "_stages", stages)


def shorten_stages(monkeypatch, num_steps, num_queries):
    """Let AutoAttack run its attacks with fewer steps, or fewer queries for Square."""
    all_stages = AUTOATTACK_MODULE._stages

    def shorten(stage):
        is_search = "num_queries" in stage.arguments
        short = {"num_queries": num_queries} if is_search else {"num_steps": num_steps}
        return stage._replace(arguments={**stage.arguments, **short})

    def stages(norm, num_targets):
        return {
            version: {name: shorten(stage) for name, stage in stages.items()}
            for version, stages in all_stages(norm, num_targets).items()
        }

    monkeypatch.setattr(AUTOATTACK_MODULE, "_stages", stages)
