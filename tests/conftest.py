"""Two CPU devices, and a trained net for the tests to attack."""

import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv.core.losses import cross_entropy
from jaxadv.core.types import Images, Labels, LogitsFn
from jaxadv.data import load
from jaxadv.models import make_model

# Enough to show what depends on the number of devices; it has to come before JAX starts.
jax.config.update("jax_num_cpu_devices", 2)
# The tests, and the programs that they start, compile much and compute little: with these flags
# a compilation takes about a third of the time.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 12):  # XLA aborts on unknown flags
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Traces stay in memory: collecting garbage among them repeatedly takes 5 % of the time.
gc.set_threshold(50_000, 50, 50)

_MOST_MAPS = 25_000


# Doctests are in `jaxadv`; two modules of this name cannot be collected.
collect_ignore_glob = ["*conftest.py", "*weight_files/make.py"]  # the latter needs PyTorch


def pytest_configure(config):
    """Let the workers, and the programs that tests start, share one compilation cache."""
    if not hasattr(config, "workerinput"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxadv-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Start the longest file first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Free the compiled programs of the files so far, before XLA crashes for want of memory maps.

    Each program takes some; Linux allows 65,530 per process.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


class Victim(NamedTuple):
    """A classifier with images that it was not trained on."""

    logits_fn: LogitsFn
    images: Images
    labels: Labels


@pytest.fixture(scope="session")
def digits_net() -> Victim:
    """A small net trained on clean digits only: no defence at all."""
    digits = load("digits", data_dir=None, validation_fraction=0.1)
    images, labels = jnp.asarray(digits.train.images) / 255, jnp.asarray(digits.train.labels)
    model = make_model("net", 10)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, opt_state, indices):
        def loss(params):
            return cross_entropy(model.apply(params, images[indices]), labels[indices]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = jax.jit(model.init)(jax.random.key(0), images[:1])
    opt_state = optimizer.init(params)
    generator = np.random.default_rng(0)
    for _ in range(50):
        params, opt_state = step(params, opt_state, generator.integers(len(labels), size=64))
    return Victim(
        logits_fn=jax.jit(lambda key, images: model.apply(params, images)),
        images=jnp.asarray(digits.test.images[:64]) / 255,
        labels=jnp.asarray(digits.test.labels[:64]),
    )
