"""CenterPoint-Pillar in Autoware's two-part layout (pillar encoder; backbone, neck and head)."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = ["CAR", "TRUCK", "BUS", "BICYCLE", "PEDESTRIAN"]
HEADS = {"heatmap": len(CLASSES), "reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


@dataclass
class Grid:
    """The bird's-eye-view grid. Metres; the head map is `downsample` times coarser."""

    min: tuple = (-51.2, -51.2, -3.0)
    max: tuple = (51.2, 51.2, 5.0)
    pillar: float = 0.4
    max_points: int = 32
    downsample: int = 2
    size: int = field(init=False)

    def __post_init__(self):
        self.size = round((self.max[0] - self.min[0]) / self.pillar)


def conv_bn_relu(cin, cout, kernel=3, stride=1):
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(cout, eps=1e-3, momentum=0.02),
        nn.ReLU(inplace=True),
    )


def deconv_bn_relu(cin, cout, stride):
    return nn.Sequential(
        nn.ConvTranspose2d(cin, cout, stride, stride, bias=False),
        nn.BatchNorm2d(cout, eps=1e-3, momentum=0.02),
        nn.ReLU(inplace=True),
    )


class PillarEncoder(nn.Module):
    """One PointNet layer. As deployed it maps [N, P, 9] to [N, 1, 32], padding rows being zeros.

    Training works on the flat list of real points instead (`forward_flat`), which gives the same
    result: a padding row contributes relu(bn(0)) to the maximum of every pillar that is not full.
    """

    # x, y, z, sweep age, offset from the pillar's mean (3) and from its centre (2). Their spreads
    # differ a hundredfold, and the norm that follows is one for all: unscaled, the metres of x
    # and y drown sweep age (velocity) and offsets (shape). Export folds this into the weights.
    SCALE = (0.04, 0.04, 0.7, 20.0, 8.0, 8.0, 4.0, 8.0, 8.0)

    def __init__(self, channels=32):
        super().__init__()
        self.linear = nn.Linear(len(self.SCALE), channels, bias=False)
        self.register_buffer("scale", torch.tensor(self.SCALE))
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.02)

    def fold_scale(self):
        """Moves the scale of the features into the weights; the outputs stay."""
        with torch.no_grad():
            self.linear.weight *= self.scale
            self.scale.fill_(1)

    def forward(self, x):
        n, p, f = x.shape
        y = self.linear(x)  # `fold_scale` came first
        y = self.norm(y.transpose(1, 2)).transpose(1, 2)
        return F.relu(y).max(dim=1, keepdim=True)[0]

    def forward_flat(self, points, counts, max_points):
        """`points` [M, 9] ordered by pillar, `counts` [N] points in each pillar."""
        x = torch.cat([points, points.new_zeros(1, points.shape[1])])
        y = F.relu(self.norm(self.linear(x * self.scale)))
        pooled = torch.segment_reduce(y[:-1], "max", lengths=counts, axis=0, unsafe=True)
        padded = torch.maximum(pooled, y[-1:])
        return torch.where((counts < max_points)[:, None], padded, pooled)


class BackboneNeckHead(nn.Module):
    def __init__(self, cin=32, channels=(32, 64, 128), layers=(3, 4, 4), neck=48, shared=48, head=32):
        super().__init__()
        self.blocks, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (c, n) in enumerate(zip(channels, layers)):
            body = [conv_bn_relu(cin, c, stride=2)] + [conv_bn_relu(c, c) for _ in range(n)]
            self.blocks.append(nn.Sequential(*body))
            self.ups.append(deconv_bn_relu(c, neck, 2**i))
            cin = c
        self.shared = conv_bn_relu(neck * len(channels), shared)
        self.heads = nn.ModuleDict()
        for name, out in HEADS.items():
            self.heads[name] = nn.Sequential(conv_bn_relu(shared, head), nn.Conv2d(head, out, 1))
        # Focal loss starts stable when the heatmap starts near its base rate.
        nn.init.constant_(self.heads["heatmap"][1].bias, -2.19)

    def forward(self, x):
        ups = []
        for block, up in zip(self.blocks, self.ups):
            x = block(x)
            ups.append(up(x))
        x = self.shared(torch.cat(ups, dim=1))
        return tuple(self.heads[name](x) for name in HEADS)


class CenterPoint(nn.Module):
    def __init__(self, grid=Grid()):
        super().__init__()
        self.grid = grid
        self.encoder = PillarEncoder()
        self.net = BackboneNeckHead()

    def forward(self, points, counts, cells, batch, precision=torch.float32):
        """`cells` [N] flat index (frame, y, x) of every pillar; `batch` frames.

        `precision` is that of convolutions (`torch.autocast`); pillars are encoded in float32, as
        metres in bfloat16 are decimetres.
        """
        g = self.grid
        features = self.encoder.forward_flat(points, counts, g.max_points)
        bev = features.new_zeros(batch * g.size * g.size, features.shape[1], dtype=precision)
        bev = bev.index_copy(0, cells, features.to(precision))
        bev = bev.view(batch, g.size, g.size, -1).permute(0, 3, 1, 2)  # already channels-last in memory
        with torch.autocast(bev.device.type, precision, enabled=precision != torch.float32):
            return self.net(bev)
