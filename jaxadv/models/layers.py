"""The convolution that every model is made of."""

from flax import linen as nn

from jaxadv.models.activations import Activation
from jaxadv.models.convolution import Outputs, Padding, convolution
from jaxadv.models.pooling import pooled_convolution
from jaxadv.types import Images


class Conv(nn.Module):
    """Convolution with a bias; every convolution of every model is one of these.

    The kernel starts He normal (He et al. 2015), the bias at zero. It computes in the type of its
    input, whatever that of its parameters.

    Attributes:
      features: number of output channels.
      size: side of the square kernel.
      strides: step between two outputs, in both directions.
      padding: `SAME` or `VALID`.
      pooled: name of an activation after which comes a 2x2 max pool, at stride 1; None: neither of
        them.
    """

    features: int
    size: int
    strides: int = 1
    padding: Padding = "SAME"
    pooled: Activation | None = None

    @nn.compact
    def __call__(self, images: Images) -> Outputs:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel, bias = kernel.astype(images.dtype), bias.astype(images.dtype)
        if self.pooled:
            assert self.strides == 1, "a pooled convolution has a stride of 1"
            return pooled_convolution(images, kernel, bias, self.pooled, padding=self.padding)
        return convolution(images, kernel, strides=self.strides, padding=self.padding) + bias
