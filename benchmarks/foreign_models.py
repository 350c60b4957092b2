"""Attacks on plain Flax networks: speed relative to PyTorch, and what fast convolutions gain.

    pip install -e ".[benchmarks]" && pip install --no-deps torchattacks
    python benchmarks/foreign_models.py mnist.npz --out results/performance

The networks use Flax's own layers, as a user of the attacks would write them. Three measurements,
all on the CPU:

- PGD with 10 steps on the MNIST network of TRADES (Zhang et al., 2019), beside torchattacks on the
  same network in PyTorch. Runs are interleaved, after a warm-up that compiles.
- AutoAttack on this network, after short adversarial training, beside the original implementation,
  packaged as `pyautoattack`. It runs once, so the seconds of jaxadv include compilation.
- The same PGD on four networks, with fast convolutions and with those of the network.

The data is a file with the arrays `train_images`, `train_labels`, `test_images` and `test_labels`
of MNIST: 28 x 28 bytes, and classes.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from common import Run, measure_interleaved
from flax import linen as nn
from jaxtyping import PyTree

from jaxadv.attacks import ATTACKS, autoattack, pgd
from jaxadv.attacks.batching import Examples, Model, attack_in_batches
from jaxadv.attacks.fast_convolutions import plain_convolutions
from jaxadv.core.devices import replicate, set_up_cpu
from jaxadv.core.losses import cross_entropy
from jaxadv.runs.workdir import provenance

EPS, STEP_SIZE, NUM_STEPS = 0.3, 0.05, 10
TRAINING_BATCH, TRAINING_STEPS = 64, 5  # examples, and steps of PGD
LEARNING_RATE = 1e-3


class MnistNet(nn.Module):
    """Four convolutions and three dense layers, as in TRADES (Zhang et al., 2019)."""

    @nn.compact
    def __call__(self, images):
        """Return the logits."""
        x = images
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for features in (200, 200):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


class ResNet(nn.Module):
    """Six residual blocks with batch norm; the second and third pair start with stride 2."""

    @nn.compact
    def __call__(self, images):
        """Return the logits."""
        norm = partial(nn.BatchNorm, use_running_average=True)
        conv = partial(nn.Conv, use_bias=False)
        x = nn.relu(norm()(conv(16, (3, 3))(images)))
        for features, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            y = nn.relu(norm()(conv(features, (3, 3), (stride, stride))(x)))
            y = norm()(conv(features, (3, 3))(y))
            if x.shape != y.shape:
                x = norm()(conv(features, (1, 1), (stride, stride))(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Four depthwise separable convolutions with batch norm (Howard et al., 2017)."""

    @nn.compact
    def __call__(self, images):
        """Return the logits."""
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(32, (3, 3))(images)))
        for features, stride in ((64, 1), (128, 2), (128, 1), (256, 2)):
            channels = x.shape[-1]
            conv = nn.Conv(channels, (3, 3), (stride, stride), feature_group_count=channels)
            x = nn.relu(norm()(conv(x)))
            x = nn.relu(norm()(nn.Conv(features, (1, 1))(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class DenseNet(nn.Module):
    """Three dense layers: nothing to gain."""

    @nn.compact
    def __call__(self, images):
        """Return the logits."""
        x = images.reshape(len(images), -1)
        for features in (500, 500):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


# Shape of the images and size of the batch.
NETWORKS = {
    MnistNet: ((28, 28, 1), 128),
    ResNet: ((32, 32, 3), 64),
    MobileNet: ((32, 32, 3), 64),
    DenseNet: ((28, 28, 1), 256),
}


def main() -> None:
    """Run the measurements, print a line for each, and write `foreign_models.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="NPZ file of MNIST")
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[128, 256], help="of PGD")
    parser.add_argument("--num-examples", type=int, default=100, help="of AutoAttack")
    parser.add_argument(
        "--num-updates", type=int, default=600, help="of adversarial training before AutoAttack"
    )
    parser.add_argument("--out", type=Path, help="folder of foreign_models.json; by default none")
    options = parser.parse_args()
    set_up_cpu()
    if jax.default_backend() != "cpu":
        raise SystemExit(
            f"JAX uses the backend {jax.default_backend()!r}, but PyTorch is measured on the CPU: "
            "set JAX_PLATFORMS=cpu"
        )
    began = time.monotonic()
    data = dict(np.load(options.data))
    images = data["test_images"][..., None] / np.float32(255)
    labels = data["test_labels"].astype(np.int32)
    network, torch_network = MnistNet(), _make_torch_network()
    variables = _train(network, data, options.num_updates)
    difference = _copy_weights(network, variables, torch_network, images[:64])

    pgd_results = {}
    for size in options.batch_sizes:
        runs = pgd_beside_torchattacks(
            network, variables, torch_network, images[:size], labels[:size]
        )
        pgd_results[str(size)] = _compare(f"PGD, batch {size}", runs)
    num = options.num_examples
    auto = compare_autoattack(network, variables, torch_network, images[:num], labels[:num])
    gains = {
        module.__name__: _compare(f"PGD, {module.__name__}", fast_beside_plain(module()))
        for module in NETWORKS
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {
            "largest_difference_of_logits": difference,
            "pgd": pgd_results,
            "autoattack": auto,
            "fast_and_plain_convolutions": gains,
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "provenance": provenance(time.monotonic() - began),
        }
        path = options.out / "foreign_models.json"
        path.write_text(json.dumps(record, indent=2) + "\n")


def pgd_beside_torchattacks(network, variables, torch_network, images, labels) -> dict[str, Run]:
    """Return runs of PGD on one batch, which count gradients."""
    import torchattacks

    attack = torchattacks.PGD(torch_network, eps=EPS, alpha=STEP_SIZE, steps=NUM_STEPS)
    batch, classes = _to_torch(images), torch.from_numpy(labels).long()
    return {
        "jaxadv": _pgd_run(network, variables, images, labels),
        "torchattacks": lambda: len(attack(batch, classes)) * NUM_STEPS,
    }


def fast_beside_plain(network: nn.Module) -> dict[str, Run]:
    """Return runs of PGD on random images and an untrained network, which count gradients."""
    shape, batch_size = NETWORKS[type(network)]
    images = np.random.default_rng(0).random((batch_size, *shape), np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images[:1])
    run = _pgd_run(network, variables, images, np.zeros(batch_size, np.int32))

    def run_plain() -> int:
        with plain_convolutions():
            return run()

    return {"fast": run, "plain": run_plain}


def _pgd_run(network: nn.Module, variables: PyTree, images: np.ndarray, labels: np.ndarray) -> Run:
    model = Model(lambda weights, ids: lambda key, x: network.apply(weights, x), variables)
    model = model._replace(context=replicate(variables))
    examples = Examples(images, labels, np.arange(len(labels)))
    arguments = {"eps": EPS, "step_size": STEP_SIZE, "num_steps": NUM_STEPS}

    def run() -> int:
        result = attack_in_batches(
            ATTACKS["pgd"],
            jax.random.key(0),
            model,
            examples,
            arguments,
            batch_size=len(labels),
        )
        return int(result.gradients.sum())

    return run


def compare_autoattack(network, variables, torch_network, images, labels) -> dict:
    """Run both implementations of AutoAttack once; return their accuracies and seconds."""
    from pyautoattack import AutoAttack

    def logits_fn(key, images):
        return network.apply(variables, images)

    def run_jaxadv() -> float:
        result = autoattack(jax.random.key(0), logits_fn, images, labels, eps=EPS, norm="linf")
        return float(np.mean(result.broken_by == -1))

    suite = AutoAttack(torch_network, norm="Linf", eps=EPS, seed=0)
    suite.verbose = False
    batch, classes = _to_torch(images), torch.from_numpy(labels).long()

    def run_pyautoattack() -> float:
        adversarial = suite.run_standard_evaluation(batch, classes, batch_size=250)[0]
        with torch.no_grad():
            return (torch_network(adversarial).argmax(1) == classes).float().mean().item()

    results = {}
    for name, run in {"jaxadv": run_jaxadv, "pyautoattack": run_pyautoattack}.items():
        began = time.perf_counter()
        accuracy = run()
        results[name] = {"accuracy": accuracy, "seconds": time.perf_counter() - began}
        print(
            f"AutoAttack, {len(labels)} examples: {name:12} accuracy {accuracy:.1%}, "
            f"{results[name]['seconds']:.1f} s",
            flush=True,
        )
    return {"num_examples": len(labels), "eps": EPS, "implementations": results}


def _train(network: nn.Module, data: dict[str, np.ndarray], num_updates: int) -> PyTree:
    """Train with PGD adversaries, whose radius grows during the first half of the updates."""
    images = jnp.asarray(data["train_images"][..., None] / np.float32(255))
    labels = jnp.asarray(data["train_labels"].astype(np.int32))
    variables = jax.jit(network.init)(jax.random.key(0), images[:1])
    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def update(variables, state, step):
        key = jax.random.fold_in(jax.random.key(1), step)
        rows = jax.random.choice(key, len(images), (TRAINING_BATCH,))
        eps = EPS * jnp.minimum(2 * step / num_updates, 1)
        adversarial = pgd(
            key,
            lambda key, x: network.apply(variables, x),
            images[rows],
            labels[rows],
            eps=eps,
            step_size=eps / 3,
            num_steps=TRAINING_STEPS,
            random_start=True,
        )

        def loss(variables):
            return cross_entropy(network.apply(variables, adversarial), labels[rows]).mean()

        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    state = optimizer.init(variables)
    for step in range(num_updates):
        variables, state = update(variables, state, jnp.float32(step))
    return jax.device_get(variables)


def _make_torch_network() -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    for channels, features in ((1, 32), (32, 64)):
        layers += [torch.nn.Conv2d(channels, features, 3), torch.nn.ReLU()]
        layers += [torch.nn.Conv2d(features, features, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    layers.append(torch.nn.Flatten())
    for inputs in (1024, 200):
        layers += [torch.nn.Linear(inputs, 200), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(200, 10)).eval()


def _copy_weights(network, variables, torch_network, images) -> float:
    """Give both networks the same weights; return the largest difference of their logits."""
    params = variables["params"]
    convolutions = [params[f"Conv_{i}"] for i in range(4)]
    dense = [dict(params[f"Dense_{i}"]) for i in range(3)]
    # PyTorch flattens the channels first.
    first = dense[0]["kernel"].reshape(4, 4, 64, 200).transpose(2, 0, 1, 3)
    dense[0]["kernel"] = first.reshape(1024, 200)
    arrays = [(layer["kernel"].transpose(3, 2, 0, 1), layer["bias"]) for layer in convolutions]
    arrays += [(layer["kernel"].T, layer["bias"]) for layer in dense]
    with_weights = (layer for layer in torch_network if hasattr(layer, "weight"))
    with torch.no_grad():
        for layer, (weight, bias) in zip(with_weights, arrays, strict=True):
            layer.weight.copy_(torch.from_numpy(np.array(weight)))
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
        torch_logits = torch_network(_to_torch(images)).numpy()
    difference = float(np.abs(np.asarray(network.apply(variables, images)) - torch_logits).max())
    assert difference < 1e-3, f"the logits of the two networks differ by {difference}"
    return difference


def _to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _compare(title: str, runs: dict[str, Callable[[], int]]) -> dict:
    """Measure two runs; return their rates, and the ratio of the first to the second."""
    rates = measure_interleaved(runs)
    first, second = runs
    ratios = np.divide(rates[first], rates[second])
    ratio = {
        "median": float(np.median(ratios)),
        "least": float(ratios.min()),
        "most": float(ratios.max()),
    }
    print(
        f"{title}: {first} {np.median(rates[first]):,.0f}, {second} "
        f"{np.median(rates[second]):,.0f} gradients per s, {ratio['median']:.2f} "
        f"({ratio['least']:.2f} to {ratio['most']:.2f}) times as fast",
        flush=True,
    )
    return {"rates": rates, "ratio": ratio}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
