"""Rate of each convolution of a model in GFLOP/s, beside PyTorch and a matrix product.

    pip install -e ".[benchmarks]"
    PYTHONPATH=.:benchmarks python benchmarks/conv_rates.py bignet biggernet smallnet wrn_7_2 \
        --out results/performance

Each layer is measured alone, with its activation and pool if it has them, on random images:

- forward: its output.
- attack: its output, and the gradient of its input.
- step: the gradient of its weights too.

A convolution counts two operations for each product; each gradient counts as many again. What the
implementations compute beyond this, such as zeros of the padding, does not count. PyTorch is the
faster of NCHW and channels-last. The runs of a task alternate; rates are medians of five.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import Run, measure_interleaved
from flax import linen as nn
from torch.nn import functional
from torch_models import ACTIVATIONS
from vs_pytorch import FORMATS

from jaxadv.core.devices import replicate, set_up_cpu
from jaxadv.core.files import write_json
from jaxadv.models import make_model
from jaxadv.models.layers import Conv
from jaxadv.runs.workdir import provenance, source_version

BATCH_SIZE, CALLS = 64, 4  # images; calls of a run
SIDE_OF_PRODUCT = 1024
TASKS = ("forward", "attack", "step")


class Layer(NamedTuple):
    """A convolution, and the (height, width, channels) of its input."""

    conv: Conv
    shape: tuple[int, int, int]


def main() -> None:
    """Measure the layers of each model, print their rates, and write `conv_rates.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="names of `jaxadv.models.make_model`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    options = parser.parse_args()
    set_up_cpu()
    source_version()
    began = time.monotonic()
    products = medians({"jaxadv": jax_product(), "PyTorch": torch_product()})
    print(f"matrix product: {products}")
    layers: dict[str, list[dict[str, Any]]] = {}
    for name in options.models:
        layers[name] = [measure(layer) for layer in layers_of(name)]
        for row in layers[name]:
            print(name, row, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "batch_size": BATCH_SIZE,
        "torch_threads": torch.get_num_threads(),
        "gflops_of_a_matrix_product": products,
        "gflops_of_layers": layers,
        "provenance": provenance(time.monotonic() - began),
    }
    write_json(options.out / "conv_rates.json", record)


def layers_of(name: str) -> list[Layer]:
    """Return the different convolutions of a model on images of CIFAR-10, in their order."""
    found: dict[Layer, None] = {}

    def record(call: Callable, arguments: tuple, options: dict, context: Any) -> Any:
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            conv = context.module.clone(parent=None, name=None)
            found[Layer(conv, arguments[0].shape[1:])] = None
        return call(*arguments, **options)

    model = make_model(name, 10)
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return list(found)


def measure(layer: Layer) -> dict[str, Any]:
    """Return the rates of a layer, in GFLOP/s by task and implementation."""
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(BATCH_SIZE, *layer.shape)).astype(np.float32)
    variables = layer.conv.init(jax.random.key(0), images[:1])
    module = torch_layer(layer, variables["params"])
    row: dict[str, Any] = {"layer": describe(layer)}
    for number, task in enumerate(TASKS, start=1):
        flops = number * CALLS * flops_of(layer)
        runs = {"jaxadv": jax_run(layer, variables, images, task, flops)}
        runs |= {
            f"PyTorch, {layout}": torch_run(module, images, memory, task, flops)
            for layout, memory in FORMATS.items()
        }
        rates = medians(runs)
        own = rates.pop("jaxadv")
        row[task] = {"jaxadv": own, "PyTorch": max(rates.values())}
    return row


def describe(layer: Layer) -> str:
    """Return a layer in words.

    >>> describe(Layer(Conv(16, 5, pooled="gelu"), (32, 32, 3)))
    '5x5, 3 to 16, input 32x32, pooled'
    """
    conv, (height, width, channels) = layer
    words = [f"{conv.size}x{conv.size}", f"{channels} to {conv.features}"]
    words += [f"input {height}x{width}"]
    words += [f"stride {conv.strides}"] if conv.strides > 1 else []
    words += ["pooled"] if conv.pooled else []
    return ", ".join(words)


def flops_of(layer: Layer) -> int:
    """Return the operations of the convolution on a batch, two for each product.

    >>> flops_of(Layer(Conv(16, 5, padding="VALID"), (32, 32, 3))) // BATCH_SIZE
    1881600
    """
    conv, (height, width, channels) = layer
    padded_alike = conv.strides == 1 or conv.size in (1, 3)  # as `torch_layer` pads
    if conv.padding not in ("SAME", "VALID") or not padded_alike:
        raise ValueError(f"{conv} is not supported: its padding in PyTorch is not written")
    shrink = conv.size - 1 if conv.padding == "VALID" else 0
    places = -(-(height - shrink) // conv.strides) * -(-(width - shrink) // conv.strides)
    return 2 * BATCH_SIZE * places * conv.size**2 * channels * conv.features


def jax_run(layer: Layer, variables: Any, images: np.ndarray, task: str, flops: int) -> Run:
    """Return a run of a task by jaxadv's layer, over all devices."""

    def work(variables: Any, images: jax.Array) -> Any:
        if task == "forward":
            return layer.conv.apply(variables, images)
        if task == "attack":
            outputs, pull_back = jax.vjp(lambda x: layer.conv.apply(variables, x), images)
        else:
            outputs, pull_back = jax.vjp(layer.conv.apply, variables, images)
        return outputs, pull_back(jnp.ones_like(outputs))

    on_devices = jax.pmap(work, in_axes=(None, 0))
    shards = images.reshape(jax.device_count(), -1, *images.shape[1:])
    placed, weights = jax.pmap(lambda x: x)(shards), replicate(variables)

    def run() -> int:
        for _ in range(CALLS):
            jax.block_until_ready(on_devices(weights, placed))
        return flops

    return run


def torch_layer(layer: Layer, params: Any) -> torch.nn.Conv2d:
    """Return the convolution in PyTorch, with the activation and the pool in its `forward`."""
    conv, (_, _, channels) = layer

    class Pooled(torch.nn.Conv2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if conv.padding == "SAME" and conv.strides == 2:  # XLA's SAME pads bottom and right
                images = functional.pad(images, (0, 1, 0, 1) if conv.size > 1 else (0, 0, 0, 0))
            outputs = super().forward(images)
            if not conv.pooled:
                return outputs
            return functional.max_pool2d(ACTIVATIONS[conv.pooled](outputs), 2)

    padding = conv.size // 2 if conv.padding == "SAME" and conv.strides == 1 else 0
    module = Pooled(
        channels, conv.features, conv.size, conv.strides, padding, bias="bias" in params
    )
    with torch.no_grad():
        kernel = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
        module.weight.copy_(torch.from_numpy(kernel.copy()))
        if "bias" in params:
            module.bias.copy_(torch.from_numpy(np.array(params["bias"])))
    return module


def torch_run(
    module: torch.nn.Module, images: np.ndarray, memory: torch.memory_format, task: str, flops: int
) -> Run:
    """Return a run of a task by PyTorch."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=memory)
    module = copy.deepcopy(module).to(memory_format=memory)  # `to` changes the weights in place
    weights = list(module.parameters())

    def run() -> int:
        for _ in range(CALLS):
            if task == "forward":
                with torch.no_grad():
                    module(batch)
                continue
            inputs = batch.detach().requires_grad_(True)
            outputs = module(inputs)
            wanted = [inputs, *weights] if task == "step" else [inputs]
            torch.autograd.grad(outputs, wanted, torch.ones_like(outputs))
        return flops

    return run


def jax_product() -> Run:
    """Return a run of square matrix products, one on each device."""
    shape = (jax.device_count(), SIDE_OF_PRODUCT, SIDE_OF_PRODUCT)
    product, matrices = jax.pmap(jnp.matmul), jax.pmap(lambda x: x)(np.ones(shape, np.float32))

    def run() -> int:
        for _ in range(CALLS):
            product(matrices, matrices).block_until_ready()
        return CALLS * jax.device_count() * 2 * SIDE_OF_PRODUCT**3

    return run


def torch_product() -> Run:
    """Return a run of square matrix products over all threads."""
    matrix = torch.ones(SIDE_OF_PRODUCT, SIDE_OF_PRODUCT)

    def run() -> int:
        for _ in range(CALLS):
            torch.mm(matrix, matrix)
        return CALLS * 2 * SIDE_OF_PRODUCT**3

    return run


def medians(runs: dict[str, Run]) -> dict[str, float]:
    """Return the median rate of each run in units of 1e9 per second."""
    return {
        name: round(float(np.median(rates)) / 1e9, 1)
        for name, rates in measure_interleaved(runs).items()
    }


if __name__ == "__main__":
    main()
