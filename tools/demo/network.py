"""The network of the demonstration: residual blocks of one width on pictures of 32×32."""

import torch
from torch import nn

CHANNELS = 16
BLOCKS = 20
HIDDEN = 128
CLASSES = 10


class Block(nn.Module):
    """ReLU(x + BN(conv(x))), (B, CHANNELS, 16, 16) throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.norm(self.conv(x)))


def network() -> nn.Module:
    """(B, 3, 32, 32) to (B, CLASSES), with the same first weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1),
        *(Block() for _ in range(BLOCKS)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )
