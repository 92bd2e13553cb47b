"""A network of one's own: a small ConvNet, whose weights are a safetensors file."""

from pathlib import Path

from torch import Tensor, nn

from pipeline import Preprocess, register_network

WEIGHTS = Path(__file__).with_name("small_convnet.safetensors")


class SmallConvNet(nn.Module):
    """Two stages of convolutions; each ends in a layer whose neurons are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Sequential(nn.Conv2d(3, 16, 5, stride=4, padding=2), nn.ReLU())
        self.parts = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Takes normalised images (B, 3, 64, 64)."""
        return self.parts(self.edges(x))


def register() -> None:
    """Makes it known in this process, and in the workers of its builds."""
    register_network(
        "small_convnet",
        SmallConvNet,
        preprocess=Preprocess(64, 64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        taps="edges,parts",
        weights=WEIGHTS,
    )
