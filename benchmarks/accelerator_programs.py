"""The programs that runs map over accelerators, by name, for `benchmarks/accelerators.py`.

Each entry calls jaxadv as a run does, with arrays of the shapes of CIFAR-10 that hold zeros. The
benchmark compiles what such a call would run on the devices.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from benchmarks.program_costs import Trips, residual_bytes
from jaxadv.adapters.trained import noise_models
from jaxadv.attacks.batching import Model
from jaxadv.config import set_defaults
from jaxadv.configs import curriculum, gan, wrn_28_10
from jaxadv.core.devices import pmap_batches
from jaxadv.core.types import HostBatch
from jaxadv.data.resident import ResidentSplit
from jaxadv.evaluation.attack_runner import run_attack, score_images
from jaxadv.evaluation.attack_suites import expand_suite
from jaxadv.evaluation.smoothing import certify_split
from jaxadv.gan.evaluator import SampleEvaluator, classify
from jaxadv.gan.sampling import make_sampler
from jaxadv.gan.step import init_state as init_gan_state
from jaxadv.gan.step import make_averaging, make_gan_setup, make_gan_step
from jaxadv.models.classifier import make_classifier, state_collections
from jaxadv.training.curriculum import Budget
from jaxadv.training.setup import make_training_setup
from jaxadv.training.step import init_state, make_train_step

NUM_CLASSES = 10
NUM_IMAGES, TRAIN_IMAGES = 50_000, 48_000  # with and without the held-out images
CIFAR_SHAPE = (32, 32, 3)
SHAPES = {"mnist_cnn": (28, 28, 1)}
TEST_BATCH = 512  # config.evaluation.batch_size


class Program(NamedTuple):
    """A program, or several that a call maps over the devices one after another.

    Attributes:
      call: calls jaxadv; a training step returns "activations" in bytes, see `residual_bytes`.
      names: of its programs, in the order in which they first run.
      trips: iterations of the loops whose number is traced, of each program; see `count_flops`.
      precision: of its products.
      chips: number of chips of a TPU.
    """

    call: Callable[[], dict[str, float] | None]
    names: tuple[str, ...] = ("",)
    trips: tuple[Trips, ...] = ((),)
    precision: str = "float32"
    chips: int = 1


def training_config(model: str, changes: dict[str, Any]) -> ConfigDict:
    """Return the config of `configs/curriculum.py` for a model, with changes."""
    config = curriculum.get_config()
    set_defaults(config)
    config.update_from_flattened_dict({"model.name": model, **changes})
    return config


def train(model: str, **changes: Any) -> dict[str, float]:
    """Map the training step of `configs/curriculum.py`, with changes, over the devices."""
    return train_config(
        training_config(model, {key.replace("__", "."): value for key, value in changes.items()})
    )


def train_config(config: ConfigDict) -> dict[str, float]:
    """Map the training step of a config over the devices."""
    set_defaults(config)
    shape, size = SHAPES.get(config.model.name, CIFAR_SHAPE), config.train.batch_size
    setup = make_training_setup(config, NUM_CLASSES, steps_per_epoch=100)
    state = jax.eval_shape(lambda: init_state(setup, shape))
    step = pmap_batches(make_train_step(setup), num_replicated=3, num_batches=2, donate_first=True)
    budget = Budget(np.float32(0.03), np.float32(0.01), np.int32(8))
    num_synthetic = setup.num_synthetic * jax.device_count()
    rows: Any = np.zeros(size - num_synthetic, np.int32)
    data: ResidentSplit | None = train_split(shape)
    if config.data.streaming:
        data, rows = None, images(size, shape)
    step(state, data, budget, rows, images(num_synthetic, shape))
    share = size // jax.device_count() * (2 if setup.loss.needs_clean else 1)
    return {"activations": _activations(setup.model, state.variables, share, shape)}


def train_split(shape: tuple[int, int, int]) -> ResidentSplit:
    """Return the shapes of a train split on the devices."""
    return ResidentSplit(
        jax.ShapeDtypeStruct((TRAIN_IMAGES, math.prod(shape)), jnp.uint8),
        jax.ShapeDtypeStruct((TRAIN_IMAGES,), jnp.int32),
        shape,
    )


def _activations(model: Any, variables: PyTree, num_images: int, shape: tuple[int, ...]) -> float:
    """Return the bytes that backpropagation through a model keeps, as JAX writes it.

    XLA keeps less, since it fuses operations. The parameters do not count.
    """
    alone = model.clone(axis_name=None)
    rngs = {name: jax.random.key(0) for name in ("dropout", "noise", "weight_noise")}
    rest = {key: value for key, value in variables.items() if key != "params"}

    def forward(params: PyTree, rest: PyTree, images: Any) -> Any:
        collections = state_collections(variables)
        return alone.apply(
            {**rest, "params": params}, images, train=True, rngs=rngs, mutable=collections
        )[0]

    batch = jax.ShapeDtypeStruct((num_images, *shape), jnp.float32)
    params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables["params"]))
    return residual_bytes(forward, variables["params"], rest, batch) - params


def images(num: int, shape: tuple[int, ...] = CIFAR_SHAPE) -> HostBatch:
    """Return black images of class 0."""
    return HostBatch(np.zeros((num, *shape), np.uint8), np.zeros(num, np.int32))


def classifier(model: str, defence: str = "none") -> tuple[Any, PyTree]:
    """Return a module and variables that are zero."""
    config = training_config(model, {"model.defence.name": defence})
    module = make_classifier(config.model, NUM_CLASSES)
    shape = SHAPES.get(model, CIFAR_SHAPE)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    )
    return module, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)


def with_noise(model: str, defence: str = "none") -> Model:
    """Return a model for attacks and scores."""
    return noise_models(*classifier(model, defence), seed=0)["on"]


def attack(model: str, name: str, *, defence: str = "none", **arguments: Any) -> None:
    """Map an attack of an evaluation over the devices."""
    (configured,) = expand_suite({name: {"attack": name, "eps": (8 / 255,), **arguments}})
    with jax.default_matmul_precision("float32"):
        run_attack(
            with_noise(model, defence), images(TEST_BATCH), configured, np.arange(TEST_BATCH),
            TEST_BATCH, 0,
        )  # fmt: skip


def score(model: str, num_passes: int, defence: str = "none") -> None:
    """Map the scoring of images over the devices."""
    target, ids = with_noise(model, defence), np.arange(TEST_BATCH)
    score_images(target, images(TEST_BATCH), None, ids, TEST_BATCH, 0, num_passes=num_passes)


def certify(model: str) -> None:
    """Map 100 forward passes of randomised smoothing over the devices."""
    config = training_config(model, {}).evaluation.certification
    config.update({"num_examples": TEST_BATCH, "num_estimation": 100})
    module, variables = classifier(model, "input_noise")
    with jax.default_matmul_precision("float32"):
        certify_split(module, variables, images(TEST_BATCH), config, TEST_BATCH, 0, progress=False)


def _gan_setup() -> tuple[ConfigDict, Any, Any]:
    config = gan.get_config()
    set_defaults(config)
    setup = make_gan_setup(config, NUM_CLASSES, CIFAR_SHAPE[-1])
    return config, setup, jax.eval_shape(lambda: init_gan_state(setup, CIFAR_SHAPE))


def gan_step() -> None:
    """Map the discriminator's and the generator's steps over the devices."""
    config, setup, state = _gan_setup()
    rows = np.zeros(config.train.num_discriminator_steps * config.train.batch_size, np.int32)
    step = pmap_batches(make_gan_step(setup), num_replicated=2, num_batches=1, donate_first=True)
    step(state, train_split(CIFAR_SHAPE), rows)


def gan_averaging() -> None:
    """Map the statistics of the averaged generator over the devices."""
    _, setup, state = _gan_setup()
    make_averaging(setup)(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state))


def gan_sampler(sampler: str) -> None:
    """Map a sampler over the devices."""
    config, setup, state = _gan_setup()
    config.sampling.sampler = sampler
    size = config.sampling.batch_size
    networks = {"params": state.ema, "batch_stats": state.generator["batch_stats"]}
    numbers = np.arange(size)
    make_sampler(setup, config.sampling)((networks, state.discriminator), numbers, numbers % 10)


def gan_evaluator() -> None:
    """Map the classifier of samples over the devices."""
    module, variables = classifier(gan.get_config().evaluator.classifier.model.name)
    classify(SampleEvaluator(module, variables), images(TEST_BATCH).images)


_STAGES = ("success check", "apgd_ce", "apgd_t", "fab_t", "square", "flags")
_PGD = {"step_size": 0.01, "num_steps": 40, "random_start": False}
_BF16 = {"precision": "bfloat16"}
STUDY_MODELS = ("net", "bignet", "biggernet", "wrn_13_10", "vit_3_128", "vit_5_256")
PUBLISHED_MODELS = (
    "mnist_cnn", "resnet_18", "resnet_34", "resnet_50", "preactresnet_18", "preactresnet_18_v2",
    "dm_preactresnet_18", "dm_preactresnet_34", "wideresnet_28_10", "dm_wideresnet_28_10",
)  # fmt: skip
_DEFENCES = {
    "pni": "bignet", "rse": "bignet", "dropout": "biggernet", "input_noise": "bignet",
    "spectral_norm": "bignet", "low_rank": "bignet",
}  # fmt: skip

# CPU seconds: about four times what was measured, since another machine took three times as long.
# MiB of temporary memory: half as much again, and 10 MiB.
BOUNDS = {
    "train bignet": {"v5e": (150, 17), "h100": (16, 32)},
    "attack bignet, PGD-40": {"v5e": (200, 13), "h100": (8, 73)},
    "attack bignet, NES": {"v5e": (280, 930), "h100": (12, 440)},
}

PROGRAMS: dict[str, Program] = {
    **{
        f"train {model}": Program(partial(train, model), trips=((8,),), precision="bfloat16")
        for model in (*STUDY_MODELS, "fastnet", "smallnet", *PUBLISHED_MODELS)
    },
    **{
        f"train {model}, {defence}": Program(
            partial(train, model, model__defence__name=defence), trips=((8,),), precision="bfloat16"
        )
        for defence, model in _DEFENCES.items()
    },
    "train wrn_13_10, rse": Program(
        partial(train, "wrn_13_10", model__defence__name="rse"),
        trips=((8,),), precision="bfloat16",
    ),
    "train bignet, learned low_rank": Program(
        partial(
            train, "bignet", model__defence__name="low_rank", model__defence__low_rank__learned=True
        ),
        trips=((8,),), precision="bfloat16",
    ),
    "train bignet, half attacked": Program(
        partial(train, "bignet", attack__fraction=0.5), trips=((8,),), precision="bfloat16"
    ),
    "train bignet, not attacked": Program(
        partial(train, "bignet", attack__fraction=0.0), precision="bfloat16"
    ),
    "train bignet, half synthetic": Program(
        partial(train, "bignet", data__synthetic__share=0.5), trips=((8,),), precision="bfloat16"
    ),
    "train bignet, streamed": Program(
        partial(train, "bignet", data__streaming=True), trips=((8,),), precision="bfloat16"
    ),
    "train bignet, L2": Program(
        partial(train, "bignet", attack__norm="l2"), trips=((8,),), precision="bfloat16"
    ),
    "train bignet, TRADES": Program(
        partial(train, "bignet", train__loss="trades", attack__loss="kl"),
        trips=((8,),), precision="bfloat16",
    ),
    "train bignet, N-FGSM": Program(
        partial(train, "bignet", attack__name="n_fgsm"), precision="bfloat16"
    ),
    "train bignet, float32": Program(
        partial(train, "bignet", train__precision="float32"), trips=((8,),)
    ),
    "train wrn_13_10, float32": Program(
        partial(train, "wrn_13_10", train__precision="float32"), trips=((8,),)
    ),
    "train bignet, 1024 images": Program(
        partial(train, "bignet", train__batch_size=1024), trips=((8,),), precision="bfloat16"
    ),
    "train bignet, 4 chips": Program(
        partial(train, "bignet"), trips=((8,),), precision="bfloat16", chips=4
    ),
    "train bignet, 1024 images, 4 chips": Program(
        partial(train, "bignet", train__batch_size=1024),
        trips=((8,),), precision="bfloat16", chips=4,
    ),
    "train configs/wrn_28_10.py": Program(
        lambda: train_config(wrn_28_10.get_config()), trips=((10,),), precision="bfloat16"
    ),
    "train configs/wrn_28_10.py, 8 chips": Program(
        lambda: train_config(wrn_28_10.get_config()), trips=((10,),), precision="bfloat16", chips=8
    ),
    "attack bignet, PGD-40": Program(partial(attack, "bignet", "pgd", **_PGD), trips=((40,),)),
    "attack bignet, PGD-40, 4 chips": Program(
        partial(attack, "bignet", "pgd", **_PGD), trips=((40,),), chips=4
    ),
    "attack wrn_13_10, PGD-40": Program(
        partial(attack, "wrn_13_10", "pgd", **_PGD), trips=((40,),)
    ),
    "attack bignet, PGD-40 in L2": Program(
        partial(attack, "bignet", "pgd", norm="l2", **_PGD), trips=((40,),)
    ),
    "attack bignet, PGD-40 in L1": Program(
        partial(attack, "bignet", "pgd", norm="l1", **_PGD), trips=((40,),)
    ),
    "attack bignet, FGSM": Program(partial(attack, "bignet", "fgsm")),
    "attack bignet, MI-FGSM": Program(
        partial(attack, "bignet", "mi_fgsm", step_size=0.003, num_steps=10), trips=((10,),)
    ),
    "attack bignet, APGD": Program(partial(attack, "bignet", "apgd", num_steps=25), trips=((25,),)),
    "attack bignet, APGD in L1": Program(
        partial(attack, "bignet", "apgd", norm="l1", num_steps=25), trips=((28,),)
    ),
    "attack bignet, FAB": Program(partial(attack, "bignet", "fab", num_steps=25), trips=((25,),)),
    "attack bignet, FMN": Program(
        partial(attack, "bignet", "fmn", num_steps=100), trips=((100,),)
    ),
    "attack bignet, DDN": Program(
        partial(attack, "bignet", "ddn", norm="l2", num_steps=100), trips=((100,),)
    ),
    "attack bignet, C&W": Program(
        partial(attack, "bignet", "cw", norm="l2", num_steps=100, num_searches=5),
        trips=((500,),),
    ),
    "attack bignet, DeepFool": Program(
        partial(attack, "bignet", "deepfool", norm="l2", num_steps=50), trips=((50,),)
    ),
    "attack bignet, NES": Program(
        partial(attack, "bignet", "nes", step_size=0.01, num_queries=500, samples_per_gradient=50),
        trips=((10, 0),),
    ),
    "attack bignet, NES of labels": Program(
        partial(
            attack, "bignet", "nes_label_only", step_size=0.01, num_queries=500,
            samples_per_gradient=10, label_samples=5,
        ),
        trips=((10, 0),),
    ),
    "attack bignet, HopSkipJump": Program(
        partial(
            attack, "bignet", "hop_skip_jump", norm="l2", num_queries=500, initial_samples=50
        ),
        trips=((60, 7),),
    ),
    "attack bignet, RayS": Program(
        partial(attack, "bignet", "rays", num_queries=500), trips=((500, 0),)
    ),
    "attack bignet, Sparse-RS": Program(
        partial(attack, "bignet", "sparse_rs", norm="l0", eps=(24,), num_queries=500),
        trips=((500, 0),),
    ),
    "attack bignet, Square": Program(
        partial(attack, "bignet", "square", num_queries=500), trips=((500, 0),)
    ),
    "attack bignet, random search": Program(
        partial(attack, "bignet", "random_search", num_queries=100), trips=((100, 0),)
    ),
    "attack bignet, AutoAttack": Program(
        partial(attack, "bignet", "autoattack"), _STAGES, ((), (25,), (25,), (25,), (500, 0), ())
    ),
    "attack bignet, AutoAttack (plus)": Program(
        partial(attack, "bignet", "autoattack", version="plus"),
        ("success check", "apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t", "flags"),
        ((), (25,), (25,), (25,), (500, 0), (25,), (25,), ()),
    ),
    "attack bignet with PNI, PGD-10, EOT of 20": Program(
        partial(
            attack, "bignet", "pgd", defence="pni", step_size=0.008, num_steps=10,
            num_noise_samples=20,
        ),
        trips=((10, 20),),
    ),
    "attack bignet with PNI, AutoAttack (rand)": Program(
        partial(attack, "bignet", "autoattack", defence="pni", version="rand"),
        ("success check", "apgd_ce", "apgd_dlr", "flags"), ((), (25, 20), (25, 20), ()),
    ),
    "score bignet": Program(partial(score, "bignet", 1)),
    "score wrn_13_10": Program(partial(score, "wrn_13_10", 1)),
    "score bignet with PNI, 50 passes": Program(partial(score, "bignet", 50, "pni")),
    "certify bignet, 100 passes": Program(partial(certify, "bignet"), trips=((100,),)),
    "GAN step": Program(gan_step, precision="bfloat16 operands"),
    "GAN averaging": Program(gan_averaging, precision="bfloat16 operands"),
    "GAN sampler": Program(partial(gan_sampler, "prior"), precision="bfloat16"),
    "GAN sampler, Langevin": Program(
        partial(gan_sampler, "ddls"), trips=((50,),), precision="bfloat16"
    ),
    "GAN evaluator": Program(gan_evaluator),
}  # fmt: skip

# Entries whose config predicts the time of a whole training.
JOBS = {
    "train bignet": curriculum.get_config,
    "train bignet, 4 chips": curriculum.get_config,
    "train configs/wrn_28_10.py": wrn_28_10.get_config,
    "train configs/wrn_28_10.py, 8 chips": wrn_28_10.get_config,
}
