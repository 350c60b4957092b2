"""Vision transformers (Dosovitskiy et al. 2021) with a convolutional tokenizer."""

from functools import partial

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from jaxadv.core.types import Images, Logits
from jaxadv.models.defences import Defence, defended, defended_input, drops_out
from jaxadv.models.layers import Conv, Dropout, check_size
from jaxadv.models.ops import ACTIVATIONS, Activation

Tokens = Float[Array, "batch tokens width"]

HEAD_WIDTH = 32
_MLP_RATIO = 4
_TOKEN_SIDE = 4  # pixels: each of the two pools halves the side


class VisionTransformer(nn.Module):
    """Convolutional tokenizer, pre-norm transformer blocks, mean of the tokens, dense.

    Two 3x3 convolutions with 2x2 max pools turn every 4x4 pixels into a token (Xiao et al. 2021:
    early convolutions help transformers see better). Images have 4x4 pixels or more; rows and
    columns beyond a multiple of 4 are dropped. Positional embeddings are learned. Convolutions are
    initialised He normal, dense layers LeCun normal, positions normal with standard deviation 0.02.

    Attributes:
      num_classes: number of logits.
      depth: number of transformer blocks.
      width: features of a token, a multiple of the 32 features of an attention head.
      activation: name of the activation.
      dropout: rate of the dropout after the attention projection and after the MLP.
      axis_name: see `make_model`.
      defence: see `jaxadv.models.defences`.
    """

    num_classes: int
    depth: int
    width: int
    activation: Activation = "gelu"
    dropout: float = 0.0
    axis_name: str | None = None
    defence: Defence | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) activates dropout."""
        check_size(self, images, smallest=_TOKEN_SIDE)
        axis_name = self.axis_name if train else None
        layer = partial(defended, self.defence, train=train, axis_name=axis_name)
        hidden = defended_input(self.defence, images, train=train, axis_name=axis_name)
        for index, features in enumerate((self.width // 2, self.width)):
            conv = Conv(features, size=3, pooled=self.activation)
            hidden = layer(conv, hidden, first=index == 0)
        tokens = hidden.reshape(hidden.shape[0], -1, self.width)
        tokens += self.param("positions", nn.initializers.normal(0.02), tokens.shape[1:])
        for _ in range(self.depth):
            block = Block(self.activation, self.dropout, axis_name, self.defence)
            tokens = block(tokens, train)
        return layer(nn.Dense(self.num_classes), nn.LayerNorm()(tokens).mean(1))


class Block(nn.Module):
    """Self-attention and an MLP four times as wide, each with a pre-norm and a shortcut.

    Attributes:
      activation: name of the activation of the MLP.
      dropout: rate of the dropout at the end of each half.
      axis_name: pmapped axis in training; None in evaluation.
      defence: of the model.
    """

    activation: Activation
    dropout: float
    axis_name: str | None
    defence: Defence | None

    @nn.compact
    def __call__(self, tokens: Tokens, train: bool) -> Tokens:
        """Map `[batch, tokens, width]` to the same shape; `train` (static) activates dropout."""
        width = tokens.shape[-1]
        axis_name = self.axis_name
        dropout = Dropout(self.dropout, not drops_out(self.defence, train), axis_name)
        layer = partial(defended, self.defence, train=train, axis_name=axis_name)
        hidden = layer(nn.Dense(3 * width), nn.LayerNorm()(tokens))
        heads = hidden.reshape(*tokens.shape[:2], 3, width // HEAD_WIDTH, HEAD_WIDTH)
        query, key, value = (heads[:, :, part] for part in range(3))
        attended = jax.nn.dot_product_attention(query, key, value).reshape(tokens.shape)
        tokens += dropout(layer(nn.Dense(width), attended))
        hidden = layer(nn.Dense(_MLP_RATIO * width), nn.LayerNorm()(tokens))
        hidden = layer(nn.Dense(width), ACTIVATIONS[self.activation](hidden))
        return tokens + dropout(hidden)
