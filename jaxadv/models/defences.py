"""Defences: what a model may do to its input, its layers or their weights against an attack.

Every model takes one of these as its option `defence` and calls the two functions of this file:
`defended_input` on its images and `defended` for each convolution and dense layer. Without a
defence both do nothing, so a defence that is switched off leaves exactly the plain model.

Noise comes from two key collections: `noise` is drawn anew for each example, `weight_noise` once
for a whole forward pass.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from jaxadv.draws import normal
from jaxadv.models.layers import Conv, GaussianNoise
from jaxadv.types import Images, UserError

GRANULARITIES = ("layer", "channel", "element")


@dataclass(frozen=True)
class PNI:
    """Parametric noise injection (He, Rakin & Fan 2019): w + alpha std(w) eta, alpha learned.

    Attributes:
      granularity: one alpha for each layer, each output channel, or each weight.
      frozen_sigma: the study's variant: std(w) stays as it was at initialisation, and alpha
        decays with the weights.
    """

    granularity: str = "layer"
    frozen_sigma: bool = False


@dataclass(frozen=True)
class RSE:
    """Random self-ensemble (Liu et al. 2018): Gaussian noise before every convolution.

    Attributes:
      sigma_init: deviation before the first convolution.
      sigma_inner: before the others.
      before_norm: in a wide ResNet, put the inner noise before the norm, as the study did, and
        not directly before the convolution.
    """

    sigma_init: float = 0.2
    sigma_inner: float = 0.1
    before_norm: bool = False


@dataclass(frozen=True)
class Dropout:
    """The model's own dropout stays on at test time."""


@dataclass(frozen=True)
class InputNoise:
    """Gaussian noise on the images, not clipped: what randomised smoothing certifies.

    Attributes:
      sigma: its deviation.
      train: whether it is there in training too.
    """

    sigma: float = 0.1
    train: bool = True


@dataclass(frozen=True)
class SpectralNorm:
    """Every kernel is divided by its largest singular value (Miyato et al. 2018), as Flax has it.

    The value is estimated by power iteration, a step for each step of training; where it has
    converged a dense layer is 1-Lipschitz. The kernel of a convolution is taken as the matrix of
    its patches, so the convolution itself is Lipschitz with at most the side of the kernel.
    """


@dataclass(frozen=True)
class LowRank:
    """The images pass through fewer dimensions, 3072-r-3072 on CIFAR-10.

    Attributes:
      rank: r. The study took 625, about the effective rank of CIFAR-10 (see
        `jaxadv.data.spectrum`).
      learned: two dense layers, learned with the model from a random orthogonal projection;
        otherwise the first principal components of the train split, which stay fixed.
    """

    rank: int = 625
    learned: bool = False


Defence = PNI | RSE | Dropout | InputNoise | SpectralNorm | LowRank

DEFENCES: dict[str, type[Defence]] = {
    "pni": PNI,
    "rse": RSE,
    "dropout": Dropout,
    "input_noise": InputNoise,
    "spectral_norm": SpectralNorm,
    "low_rank": LowRank,
}


def is_stochastic(defence: Defence | None) -> bool:
    """Returns whether two passes over the same image differ."""
    return isinstance(defence, PNI | RSE | Dropout | InputNoise)


def drops_out(defence: Defence | None, train: bool) -> bool:
    """Returns whether the model's dropout is on."""
    return train or isinstance(defence, Dropout)


def smoothing_sigma(defence: Defence | None) -> float | None:
    """Returns the deviation of the Gaussian noise that the input itself gets; None if it gets none.

    Whatever noise comes later is the base classifier's own, so the smoothed classifier can be
    certified (Cohen et al. 2019).
    """
    match defence:
        case InputNoise(sigma=sigma) | RSE(sigma_init=sigma):
            return sigma
    return None


def check_defence(defence: Defence) -> None:
    """Raises a UserError that names the first option that cannot be meant."""
    match defence:
        case PNI(granularity=granularity) if granularity not in GRANULARITIES:
            raise UserError(f"pni.granularity is {granularity!r}: use layer, channel or element.")
        case RSE(sigma_init=first, sigma_inner=inner) if not (first >= 0 and inner >= 0):
            raise UserError(f"rse.sigma_init, sigma_inner are {first}, {inner}: use 0 or more.")
        case InputNoise(sigma=sigma) if not sigma > 0:
            raise UserError(f"input_noise.sigma is {sigma}: use a number above 0.")
        case LowRank(rank=rank) if rank < 1:
            raise UserError(f"low_rank.rank is {rank}: use 1 or more.")


def defended_input(
    defence: Defence | None, images: Images, *, train: bool, axis_name: str | None
) -> Images:
    """Returns the images as the defence lets the model see them; inside a compact module."""
    match defence:
        case InputNoise(sigma=sigma, train=in_training) if in_training or not train:
            return GaussianNoise(sigma, axis_name)(images)
        case LowRank(rank=rank, learned=learned):
            return LowRankProjection(rank, learned)(images)
    return images


def defended(
    defence: Defence | None,
    layer: nn.Module,
    inputs: Array,
    *,
    train: bool,
    axis_name: str | None,
    first: bool = False,
    after_norm: bool = False,
) -> Array:
    """Returns the output of a convolution or dense layer under the defence.

    Args:
      defence: of the model.
      layer: made in the calling compact module, so that its parameters are named as without a
        defence.
      inputs: of the layer.
      train: static, as of the model.
      axis_name: of the devices that the batch is split over, see `make_model`.
      first: whether this layer sees the images.
      after_norm: whether a norm came before it, which has had the noise of `RSE.before_norm`.
    """
    match defence:
        case PNI(granularity=granularity, frozen_sigma=frozen_sigma):
            return WeightNoise(layer, granularity, frozen_sigma)(inputs)
        case RSE(before_norm=before_norm) if isinstance(layer, Conv):
            if not (before_norm and after_norm):
                sigma = defence.sigma_init if first else defence.sigma_inner
                inputs = GaussianNoise(sigma, axis_name)(inputs)
        case SpectralNorm():
            return nn.SpectralNorm(layer)(inputs, update_stats=train)
    return layer(inputs)


def defended_norm_input(defence: Defence | None, inputs: Array, *, axis_name: str | None) -> Array:
    """Returns what a norm sees: noise is added where the defence puts it before the norm."""
    match defence:
        case RSE(sigma_inner=sigma, before_norm=True):
            return GaussianNoise(sigma, axis_name)(inputs)
    return inputs


class WeightNoise(nn.Module):
    """A layer whose kernel gets noise from the collection `weight_noise`, see `PNI`.

    Alpha starts at 0.25 and is multiplied by the deviation of the whole kernel, through which no
    gradient flows (equations 1 and 2 of the paper, and its code). Biases get no noise.
    """

    layer: nn.Module
    granularity: str
    frozen_sigma: bool

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps as the layer does."""
        if self.is_initializing():
            self.layer(inputs)  # makes the kernel that the noise is scaled by
        noisy = nn.map_variables(lambda layer: layer(inputs), "params", self._add_noise)
        return noisy(self.layer)

    def _add_noise(self, variables: dict[str, Any]) -> dict[str, Any]:
        params = variables["params"]
        kernel = params["kernel"]
        shape = {
            "layer": (),
            "channel": kernel.shape[-1:],
            "element": kernel.shape,
        }[self.granularity]
        sigma = lax.stop_gradient(kernel.std(ddof=1))
        if self.frozen_sigma:
            sigma = self.variable("frozen", "sigma", lambda: sigma).value
        # Only what is named alpha is spared from weight decay, see jaxadv.optimizer.
        name = "decayed_alpha" if self.frozen_sigma else "alpha"
        alpha = self.param(name, nn.initializers.constant(0.25), shape)
        eta = normal(self.make_rng("weight_noise"), kernel.shape)
        return {"params": {**params, "kernel": kernel + alpha * sigma * eta}}


class LowRankProjection(nn.Module):
    """Maps images to r numbers and back to images, see `LowRank`.

    Fixed, its `mean` and `components` (r, pixels) lie in the collection `pca`, to be filled in
    from the train split.
    """

    rank: int
    learned: bool

    @nn.compact
    def __call__(self, images: Images) -> Images:
        """Maps images to images of the same shape."""
        flat = images.reshape(len(images), -1)
        pixels = flat.shape[1]
        if self.rank > pixels:
            raise UserError(f"low_rank.rank is {self.rank}: the images have {pixels} numbers.")
        if self.learned:
            orthogonal = nn.initializers.orthogonal()
            encoder = self.param("encoder", orthogonal, (pixels, self.rank))
            decoder = self.param("decoder", lambda *_: encoder.T)
            return (flat @ encoder @ decoder).reshape(images.shape)
        mean = self.variable("pca", "mean", jnp.zeros, pixels).value
        components = self.variable("pca", "components", jnp.zeros, (self.rank, pixels)).value
        return (mean + (flat - mean) @ components.T @ components).reshape(images.shape)
