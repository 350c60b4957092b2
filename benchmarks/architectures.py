"""Published architectures beside the same networks in PyTorch: parameters, logits and gradients.

    pip install -e ".[benchmarks]"
    python benchmarks/architectures.py --out results/models

Each network gets random weights and random running averages, converted by the names of the state
dict, and a random image. The differences are relative to the largest logit and to the largest
gradient. Logits are compared in float32, gradients of a loss with respect to the image in float64:
in float32, an input of ReLU near zero may be positive in one framework and negative in the other,
and only the former passes the gradient.
"""

import argparse
import gc
import json
import time
from pathlib import Path

import jax
import numpy as np
import torch
from flax import linen as nn
from jaxtyping import PyTree
from torch_architectures import make_torch, randomise, state_dict

from jaxadv.core.devices import set_up_cpu
from jaxadv.models import make_model
from jaxadv.models.state_dicts import to_variables
from jaxadv.runs.workdir import provenance

CIFAR10, MNIST = (32, 32, 3), (28, 28, 1)
GREY = {"mean": (0.5,), "std": (0.5,)}
# Name, shape of the images, options, and the number of parameters in millions as published.
CASES = (
    ("mnist_cnn", MNIST, {}, None),
    ("resnet_18", MNIST, {}, None),
    ("preactresnet_18", MNIST, {}, None),
    ("resnet_18", CIFAR10, {}, 11.17),
    ("resnet_34", CIFAR10, {}, 21.28),
    ("resnet_50", CIFAR10, {}, 23.52),
    ("preactresnet_18", CIFAR10, {}, 11.17),
    ("preactresnet_18_v2", CIFAR10, {}, 11.17),
    ("dm_preactresnet_18", CIFAR10, {}, None),
    ("dm_preactresnet_34", CIFAR10, {}, None),
    ("wideresnet_28_10", CIFAR10, {}, 36.48),
    ("wideresnet_34_10", CIFAR10, {}, 46.16),
    ("wideresnet_70_16", CIFAR10, {}, 266.8),
    ("dm_wideresnet_28_10", MNIST, {**GREY, "padding": 2}, 36.48),
    ("dm_wideresnet_28_10", CIFAR10, {}, 36.48),
    ("dm_wideresnet_70_16", CIFAR10, {}, 266.8),
)


def main() -> None:
    """Compare each architecture, print a line for it, and write `architectures.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of architectures.json; by default none")
    options = parser.parse_args()
    set_up_cpu()
    jax.config.update("jax_enable_x64", True)
    began, results = time.monotonic(), []
    for name, image_shape, arguments, millions in CASES:
        model = make_model(name, 10, **arguments)
        found = {"name": name, "image_shape": image_shape, **compare(model, image_shape)}
        results.append({**found, "published_millions": millions})
        print(
            f"{name:20} {'x'.join(map(str, image_shape)):8} {found['parameters'] / 1e6:7.2f} M "
            f"(published: {millions}), logits differ by {found['logits']:.1e}, gradients by "
            f"{found['gradients']:.1e}",
            flush=True,
        )
        gc.collect()
        if options.out:  # after each network, since all of them take long
            options.out.mkdir(parents=True, exist_ok=True)
            record = {
                "architectures": results,
                "torch": torch.__version__,
                "provenance": provenance(time.monotonic() - began),
            }
            (options.out / "architectures.json").write_text(json.dumps(record, indent=2) + "\n")


def compare(model: nn.Module, image_shape: tuple[int, int, int]) -> dict:
    """Return the number of parameters, and relative differences of logits and gradients.

    Args:
      model: a published architecture.
      image_shape: height, width and channels of the images.
    """
    images = np.random.default_rng(0).random((1, *image_shape), np.float32)
    network = make_torch(model, image_shape)
    randomise(network, seed=0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    logits = jax.jit(model.apply)(to_variables(state_dict(network), shapes), images)
    with torch.no_grad():
        expected_logits = network(_to_nchw(images)).numpy()

    def loss(images: jax.Array, variables: PyTree) -> jax.Array:
        return jax.nn.logsumexp(model.apply(variables, images), axis=1).sum()

    network, images = network.double(), images.astype(np.float64)
    doubles = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), shapes)
    variables = to_variables(state_dict(network), doubles)
    gradients = jax.jit(jax.grad(loss))(images, variables)
    torch_images = _to_nchw(images).requires_grad_()
    network(torch_images).logsumexp(1).sum().backward()
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])),
        "logits": _difference(logits, expected_logits),
        "gradients": _difference(gradients, torch_images.grad.numpy().transpose(0, 2, 3, 1)),
    }


def _to_nchw(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2))


def _difference(actual: jax.Array, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
