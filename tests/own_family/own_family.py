"""A family of latent action models in a package of its own: two linear maps and a bottleneck."""

from dataclasses import dataclass

from torch import Tensor, nn

from aclam.lam import LatentActionModel
from aclam.lam.bottlenecks import make_bottleneck
from aclam.lam.quantizer import BottleneckConfig, LatentAction
from aclam.lam.registry import LAMS, ProprioConfig


@dataclass(frozen=True)
class OwnConfig(ProprioConfig):
    """Settings of the family; `width` is its own."""

    image_size: int = 16
    patch_size: int = 16
    tokens: int = 2
    code_dim: int = 4
    bottleneck: BottleneckConfig = BottleneckConfig(codes=8, continuous_steps=4)
    width: int = 16  # of the hidden layer


@LAMS.register("own", OwnConfig, {"own_cpu": OwnConfig()})
class OwnLam(LatentActionModel):
    """The latent is read from the difference of two frames and added to the first."""

    def __init__(self, c: OwnConfig):
        super().__init__(c)
        pixels = 3 * c.image_size**2
        self.read = nn.Sequential(nn.Linear(pixels, c.width), nn.Linear(c.width, c.latent_dim))
        self.bottleneck = make_bottleneck(c.tokens, c.code_dim, c.bottleneck)
        self.write = nn.Linear(c.latent_dim, pixels)
        self.proprio_fdm = c.make_proprio_fdm()

    def latents(self, o_i: Tensor, o_j: Tensor) -> LatentAction:
        self.check_normalized(o_i=o_i, o_j=o_j)
        tokens = self.read((o_j - o_i).flatten(1))  # (B, d)
        return self.bottleneck(tokens.unflatten(1, (self.config.tokens, -1))).flatten()

    def predict(self, o_i: Tensor, z: Tensor) -> Tensor:
        self.check_normalized(o_i=o_i, z=z)
        return o_i + self.write(z).view_as(o_i)
