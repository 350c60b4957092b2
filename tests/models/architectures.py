"""Small networks of each published architecture."""

from jaxadv.models.dm_preact_resnet import DMPreActResNet
from jaxadv.models.dm_wide_resnet import DMWideResNet
from jaxadv.models.mnist_cnn import MnistCNN
from jaxadv.models.preact_resnet import PreActResNet
from jaxadv.models.resnet import ResNet
from jaxadv.models.wide_resnet import WideResNet

GREY = {"mean": (0.5,), "std": (0.25,)}
COLOUR, MNIST = (16, 16, 3), (28, 28, 1)

# Each with the shape of its images.
ARCHITECTURES = {
    "wideresnet": (WideResNet(3, depth=10, width=1), COLOUR),
    "wideresnet, normalised": (WideResNet(3, depth=16, width=2, **GREY), MNIST),
    "dm_wideresnet": (DMWideResNet(3, depth=10, width=2), COLOUR),
    "dm_wideresnet, MNIST": (DMWideResNet(3, depth=10, width=1, padding=2, **GREY), MNIST),
    "resnet_18": (ResNet(3, depth=18, width=4), COLOUR),
    "resnet_50": (ResNet(3, depth=50, width=4), COLOUR),
    "preactresnet_18": (PreActResNet(3, depth=18, width=4), COLOUR),
    "preactresnet_18_v2": (PreActResNet(3, depth=18, width=4, version=2), COLOUR),
    "dm_preactresnet_18": (DMPreActResNet(3, depth=18, width=4), COLOUR),
    "mnist_cnn": (MnistCNN(3), MNIST),
}
