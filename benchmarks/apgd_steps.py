"""Auto-PGD beside the reference implementation, step by step: losses and halvings in float64.

    pip install -e ".[benchmarks]"
    python benchmarks/apgd_steps.py

An untrained `net` with the same weights in both, random images, small balls in which nothing is
fooled, and the same start. The loss after each step must agree to 1e-9. The reference compares the
first loss of the first window with 0, so beyond the first checkpoint, step 22, a step size may be
halved here that is not there: it is told from which step on the two part.
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
PEER_NORMS = {"linf": "Linf", "l2": "L2"}
PEER_LOSSES = {"cross_entropy": "ce", "dlr": "dlr"}


class Watched(APGDAttack):
    """The reference, which shows the losses of all steps at each checkpoint."""

    def check_oscillation(self, losses, step, *arguments, **options):
        """Keeps what the reference looks at."""
        self.losses = losses[: step + 1].numpy().copy()
        return super().check_oscillation(losses, step, *arguments, **options)


def main() -> None:
    """Prints the largest difference for each norm and loss; stops where it is too large."""
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)  # of what the reference keeps its losses in
    model = make_model("net", 10)
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(32 * NUM_IMAGES, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(images[:1]))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)

    def logits_fn(key, images):
        return model.apply(variables, images)

    # Those that are farthest from being fooled, and the labels that the model gives them.
    logits = np.asarray(logits_fn(None, jnp.asarray(images)))
    highest = np.sort(logits, axis=1)
    images = images[np.argsort(highest[:, -2] - highest[:, -1])[:NUM_IMAGES]]
    labels = np.asarray(logits_fn(None, jnp.asarray(images)).argmax(axis=1)).astype(np.int32)
    peer = to_torch(model, variables, torch.float64)
    for norm in EPS:
        for loss in PEER_LOSSES:
            compare(logits_fn, peer, images, labels, norm, loss)


def compare(logits_fn, peer, images, labels, norm: str, loss: str) -> None:
    """Runs both from the same start and prints how far their losses agree."""

    def run(num_queries):
        return apgd(
            jax.random.key(0), logits_fn, jnp.asarray(images), jnp.asarray(labels),
            eps=EPS[norm], norm=norm, loss=loss, num_steps=NUM_STEPS, num_queries=num_queries,
        )  # fmt: skip

    start = np.asarray(run(1).memory.attempt.here)
    theirs = _reference_losses(peer, start, images, labels, norm, loss)
    states = [run(1 + step) for step in range(1, len(theirs) + 1)]
    assert not states[-1].success.any(), "an image was fooled: take smaller balls"
    ours = np.stack([np.asarray(state.memory.attempt.loss) for state in states])
    differences = np.abs(ours - theirs).max(axis=1)
    sizes = np.stack([np.asarray(state.memory.attempt.step_size) for state in states])
    assert (sizes[:CHECKED] == 2 * EPS[norm]).all()
    assert differences[:CHECKED].max() < 1e-9, differences[:CHECKED]
    parted = np.flatnonzero(differences > 1e-9)
    until = f"they part at step {parted[0] + 1}" if len(parted) else f"so do all {len(theirs)}"
    moved = np.abs(ours[CHECKED - 1] - ours[0]).max()
    print(
        f"{norm:5} {loss:14} the losses of {CHECKED} steps, which move by up to {moved:.1e}, agree "
        f"to {differences[:CHECKED].max():.1e}; {until}"
    )


def _reference_losses(peer, start, images, labels, norm: str, loss: str) -> np.ndarray:
    attack = Watched(
        peer, n_iter=NUM_STEPS, norm=PEER_NORMS[norm], eps=EPS[norm], loss=PEER_LOSSES[loss],
        seed=0, device="cpu",
    )  # fmt: skip
    clean, first = (
        torch.from_numpy(batch.transpose(0, 3, 1, 2).copy()) for batch in (images, start)
    )
    attack.init_hyperparam(clean)
    attack.attack_single_run(clean, torch.from_numpy(labels).long(), x_init=first)
    return attack.losses


if __name__ == "__main__":
    main()
