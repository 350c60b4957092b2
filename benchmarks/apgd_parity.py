"""Auto-PGD against the reference implementation, step by step, in float64.

    pip install -e ".[benchmarks]"
    python benchmarks/apgd_parity.py

Both implementations run from the same start on an untrained `net` with the same weights. The images
are random, and the radii so small that no image is fooled. For each norm and loss, the losses of
the first 20 steps must agree to 1e-9, and no step size may be halved; otherwise the script fails.

Later steps may differ. The reference compares the first loss of the first window with 0, jaxadv
with the loss at the start. From the first checkpoint on, step 22, jaxadv may thus halve a step size
that the reference keeps. The script prints the first step at which the losses differ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from pyautoattack.autopgd_base import APGDAttack
from torch_models import to_torch

from jaxadv.attacks import apgd
from jaxadv.models import make_model

NUM_IMAGES, NUM_STEPS, CHECKED = 8, 100, 20
EPS = {"linf": 0.0005, "l2": 0.01}
REFERENCE_NORMS = {"linf": "Linf", "l2": "L2"}
REFERENCE_LOSSES = {"cross_entropy": "ce", "dlr": "dlr"}


class RecordingAPGD(APGDAttack):
    """The reference implementation, which records the losses of all steps.

    Attributes:
      losses: of all steps up to the last checkpoint, shape (steps, images).
    """

    def check_oscillation(self, losses, step, *arguments, **options):
        """Record the losses that the reference compares at a checkpoint."""
        self.losses = losses[: step + 1].numpy().copy()
        return super().check_oscillation(losses, step, *arguments, **options)


def main() -> None:
    """Compare the implementations for each norm and loss."""
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)  # dtype of the reference's array of losses
    model = make_model("net", 10)
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(32 * NUM_IMAGES, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(images[:1]))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)

    def logits_fn(key, images):
        return model.apply(variables, images)

    # The images with the largest margins, labelled with the classes that the model predicts.
    logits = np.asarray(logits_fn(None, jnp.asarray(images)))
    ascending = np.sort(logits, axis=1)
    images = images[np.argsort(ascending[:, -2] - ascending[:, -1])[:NUM_IMAGES]]
    labels = np.asarray(logits_fn(None, jnp.asarray(images)).argmax(axis=1)).astype(np.int32)
    torch_model = to_torch(model, variables, torch.float64)
    for norm in EPS:
        for loss in REFERENCE_LOSSES:
            compare(logits_fn, torch_model, images, labels, norm, loss)


def compare(logits_fn, torch_model, images, labels, norm: str, loss: str) -> None:
    """Run both implementations from the same start, and print how closely their losses agree.

    Raises:
      AssertionError: the losses or the step sizes of the first `CHECKED` steps differ, or an image
        was fooled.
    """

    def run(num_queries):
        return apgd(
            jax.random.key(0), logits_fn, jnp.asarray(images), jnp.asarray(labels),
            eps=EPS[norm], norm=norm, loss=loss, num_steps=NUM_STEPS, num_queries=num_queries,
        )  # fmt: skip

    start = np.asarray(run(1).extras.state.iterate)
    reference = _reference_losses(torch_model, start, images, labels, norm, loss)
    results = [run(1 + step) for step in range(1, len(reference) + 1)]
    assert not results[-1].success.any(), f"an image was fooled: reduce EPS[{norm!r}]"
    losses = np.stack([np.asarray(result.extras.state.loss) for result in results])
    differences = np.abs(losses - reference).max(axis=1)
    step_sizes = np.stack([np.asarray(result.extras.state.step_size) for result in results])
    assert (step_sizes[:CHECKED] == 2 * EPS[norm]).all(), "a step size was halved too early"
    assert differences[:CHECKED].max() < 1e-9, f"the losses differ: {differences[:CHECKED]}"
    different = np.flatnonzero(differences > 1e-9)
    later = (
        f"first difference at step {different[0] + 1}"
        if len(different)
        else f"no difference in all {len(reference)} steps"
    )
    change = np.abs(losses[CHECKED - 1] - losses[0]).max()
    print(
        f"{norm:5} {loss:14} over {CHECKED} steps the losses change by up to {change:.1e} and "
        f"agree to {differences[:CHECKED].max():.1e}; {later}"
    )


def _reference_losses(torch_model, start, images, labels, norm: str, loss: str) -> np.ndarray:
    """Return the losses of the reference implementation, shape (steps, images)."""
    attack = RecordingAPGD(
        torch_model, n_iter=NUM_STEPS, norm=REFERENCE_NORMS[norm], eps=EPS[norm],
        loss=REFERENCE_LOSSES[loss], seed=0, device="cpu",
    )  # fmt: skip
    clean, first = (
        torch.from_numpy(batch.transpose(0, 3, 1, 2).copy()) for batch in (images, start)
    )
    attack.init_hyperparam(clean)
    attack.attack_single_run(clean, torch.from_numpy(labels).long(), x_init=first)
    return attack.losses


if __name__ == "__main__":
    main()
