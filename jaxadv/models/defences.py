"""Defences: noise, dropout, spectral normalisation and low-rank projection.

Every model has the option `defence` and calls two functions of this file: `defended_input` on its
images and `defended` for each convolution and dense layer. Without a defence both change nothing,
so that the model is exactly the plain one.

Random defences use three key collections. `noise` and `dropout` differ between the examples of a
batch; `weight_noise` is sampled once for a forward pass.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from jaxadv.core.rng import normal
from jaxadv.core.types import Images, UserError
from jaxadv.models.layers import Conv, GaussianNoise


@dataclass(frozen=True)
class PNI:
    """Parametric noise injection (He, Rakin & Fan 2019): w + alpha std(w) eta, alpha learned.

    Each layer has one alpha.

    Attributes:
      frozen_sigma: variant of the study: std(w) keeps its value at initialisation, and alpha
        decays with the weights.
    """

    frozen_sigma: bool = False


@dataclass(frozen=True)
class RSE:
    """Random self-ensemble (Liu et al. 2018): Gaussian noise before every convolution.

    Attributes:
      sigma_init: standard deviation before the first convolution.
      sigma_inner: standard deviation before the others.
      before_norm: in a wide ResNet, add the inner noise before the norm, as the study did, and not
        directly before the convolution.
    """

    sigma_init: float = 0.2
    sigma_inner: float = 0.1
    before_norm: bool = False


@dataclass(frozen=True)
class Dropout:
    """The dropout of the model is active at test time too."""


@dataclass(frozen=True)
class InputNoise:
    """Gaussian noise on the images, not clipped, as randomised smoothing requires.

    Attributes:
      sigma: standard deviation.
      train: whether to add it in training too.
    """

    sigma: float = 0.1
    train: bool = True


@dataclass(frozen=True)
class SpectralNorm:
    """Division of every kernel by its largest singular value (Miyato et al. 2018), by Flax.

    Power iteration estimates the value, with one step for each training step. Once it has
    converged, a dense layer is 1-Lipschitz. The kernel of a convolution is treated as the matrix of
    its patches, so the Lipschitz constant of the convolution is at most the side of the kernel.
    """


@dataclass(frozen=True)
class LowRank:
    """Projection of the images to fewer dimensions and back, 3072-r-3072 on CIFAR-10.

    Attributes:
      rank: r. The study used 625, about the effective rank of CIFAR-10 (see `jaxadv.data.pca`).
      learned: use two dense layers, initialised with a random orthogonal projection and learned
        with the model; otherwise the first principal components of the train split, fixed.
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
    """Return whether two forward passes over the same image differ."""
    return isinstance(defence, PNI | RSE | Dropout | InputNoise)


def drops_out(defence: Defence | None, train: bool) -> bool:
    """Return whether the dropout of the model is active."""
    return train or isinstance(defence, Dropout)


def smoothing_sigma(defence: Defence | None) -> float | None:
    """Return the standard deviation of the Gaussian noise on the images; None without such noise.

    Noise on later layers belongs to the base classifier, so the smoothed classifier can be
    certified (Cohen et al. 2019).
    """
    match defence:
        case InputNoise(sigma=sigma) | RSE(sigma_init=sigma):
            return sigma
    return None


def check_defence(defence: Defence) -> None:
    """Raise a UserError that names the first option out of range."""
    match defence:
        case RSE(sigma_init=first, sigma_inner=inner) if not (first >= 0 and inner >= 0):
            raise UserError(f"rse.sigma_init, sigma_inner are {first}, {inner}: use 0 or more.")
        case InputNoise(sigma=sigma) if not sigma > 0:
            raise UserError(f"input_noise.sigma is {sigma}: use a number above 0.")
        case LowRank(rank=rank) if rank < 1:
            raise UserError(f"low_rank.rank is {rank}: use 1 or more.")


def defended_input(
    defence: Defence | None, images: Images, *, train: bool, axis_name: str | None
) -> Images:
    """Apply the defence to the images of a model; call it in a compact module."""
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
    """Apply a convolution or dense layer under the defence.

    Args:
      defence: of the model.
      layer: created in the calling compact module, so that the defence does not change the names of
        its parameters.
      inputs: of the layer.
      train: static, as in the model.
      axis_name: axis over which the batch is split, see `make_model`.
      first: whether the inputs are the images.
      after_norm: whether the inputs passed a norm, before which `RSE.before_norm` added the noise.
    """
    match defence:
        case PNI(frozen_sigma=frozen_sigma):
            return WeightNoise(layer, frozen_sigma)(inputs)
        case RSE(before_norm=before_norm) if isinstance(layer, Conv):
            if not (before_norm and after_norm):
                sigma = defence.sigma_init if first else defence.sigma_inner
                inputs = GaussianNoise(sigma, axis_name)(inputs)
        case SpectralNorm():
            return nn.SpectralNorm(layer)(inputs, update_stats=train)
    return layer(inputs)


def defended_norm_input(defence: Defence | None, inputs: Array, *, axis_name: str | None) -> Array:
    """Return the inputs of a norm, with noise if the defence adds it before the norm."""
    match defence:
        case RSE(sigma_inner=sigma, before_norm=True):
            return GaussianNoise(sigma, axis_name)(inputs)
    return inputs


class WeightNoise(nn.Module):
    """A layer with noise on its kernel, from the key collection `weight_noise`; see `PNI`.

    The learned alpha is initialised with 0.25. It is multiplied by the standard deviation of the
    whole kernel, through which no gradient flows (equations 1 and 2 of the paper, and its code).
    Biases get no noise.
    """

    layer: nn.Module
    frozen_sigma: bool

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map the inputs as the layer does."""
        if self.is_initializing():
            self.layer(inputs)  # creates the kernel that scales the noise
        noisy = nn.map_variables(lambda layer: layer(inputs), "params", self._add_noise)
        return noisy(self.layer)

    def _add_noise(self, variables: dict[str, Any]) -> dict[str, Any]:
        params = variables["params"]
        kernel = params["kernel"]
        sigma = lax.stop_gradient(kernel.std(ddof=1))
        if self.frozen_sigma:
            sigma = self.variable("frozen", "sigma", lambda: sigma).value
        # Weight decay skips parameters named alpha, see jaxadv.training.optimizer.
        name = "decayed_alpha" if self.frozen_sigma else "alpha"
        alpha = self.param(name, nn.initializers.constant(0.25), ())
        eta = normal(self.make_rng("weight_noise"), kernel.shape)
        return {"params": {**params, "kernel": kernel + alpha * sigma * eta}}


class LowRankProjection(nn.Module):
    """Projection of images to r numbers and back; see `LowRank`.

    The fixed projection keeps its `mean` and `components` (r, pixels) in the collection `pca`.
    Training computes them from the train split.
    """

    rank: int
    learned: bool

    @nn.compact
    def __call__(self, images: Images) -> Images:
        """Map images to images of the same shape."""
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
