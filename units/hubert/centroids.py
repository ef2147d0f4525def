"""k-means units: a projection, then the nearest of k centroids."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Centroids(nn.Module):
    """Features [..., dim] -> the nearest centroid after an affine projection.

    |y - c|^2 = |y|^2 - 2 (y . c - |c|^2 / 2), so the nearest centroid is where the bracket is largest. Computed in
    float32, as scikit-learn does. Without a projection the two are the identity and zero.

    Args:
        dim: of the features.
        dims: after the projection.
        units: k.
    """

    mean: Tensor
    projection: Tensor
    vectors: Tensor

    def __init__(self, dim: int, dims: int, units: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("projection", torch.eye(dim, dims))
        self.register_buffer("vectors", torch.zeros(units, dims))

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def project(self, x: Tensor) -> Tensor:
        """Features [..., dim] -> [..., dims]."""
        return (x.float() - self.mean) @ self.projection

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        """Features [..., dim] -> units [...], int64."""
        y = self.project(x)
        return (y @ self.vectors.T - 0.5 * self.vectors.square().sum(-1)).argmax(-1)
