"""Calibrators to compare with: clip thresholds for a tensor from the histogram of its absolute values.

The histograms count every element, exact zeros too, as general-purpose calibrators do. On a bird's-eye-view
map nine tenths of the elements are zero, and that is what the comparison is about.
"""

from __future__ import annotations

import numpy as np

# TensorRT's calibrator works on 2048 bins (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
KL_BINS = 2048
# Finer than the calibrators need, so that one pass serves the percentile as well.
FINE_BINS = 16 * KL_BINS


class Histogram:
    """Counts of |x| in equal bins over [0, limit]; what lies beyond goes to the last bin."""

    def __init__(self, limit: float, bins: int = FINE_BINS):
        self.limit = float(limit)
        self.counts = np.zeros(bins, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Counts all elements of a float array."""
        bins = len(self.counts)
        if not self.limit > 0:
            self.counts[0] += values.size
            return
        flat = np.abs(values.ravel())
        seen = flat[flat > 0]
        index = np.minimum((seen * np.float32(bins / self.limit)).astype(np.int64), bins - 1)
        self.counts += np.bincount(index, minlength=bins)
        self.counts[0] += values.size - seen.size

    def coarse(self, bins: int) -> np.ndarray:
        """The counts in fewer bins; `bins` must divide the number of bins."""
        return self.counts.reshape(bins, -1).sum(axis=1)


def divergence(counts: np.ndarray, size: int, levels: int) -> float:
    """KL(P || Q) of clipping a histogram after `size` bins and quantizing the rest to `levels` levels.

    P is the clipped histogram with the outliers added to its last bin. Q is the part without outliers, merged
    into `levels` groups and spread evenly over those bins of each group that are not empty. Infinite
    where P has mass and Q has none.
    """
    kept = counts[:size].astype(np.float64)
    p = kept.copy()
    p[-1] += counts[size:].sum()
    starts = np.arange(levels) * size // levels
    group = np.searchsorted(starts, np.arange(size), side="right") - 1
    occupied = kept > 0
    mass = np.bincount(group, kept, levels)
    share = np.bincount(group, occupied, levels)
    q = np.where(occupied, (mass / np.maximum(share, 1))[group], 0.0)
    if not q.sum() > 0 or np.any((p > 0) & (q == 0)):
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


def kl_threshold(histogram: Histogram, bits: int = 8, bins: int = KL_BINS, level_zeros: bool = False) -> float:
    """Clip threshold of least KL divergence, candidates from `levels` bins up to all of them.

    The published algorithm, with 2^(bits - 1) levels for |x|: 128 at 8 bits. With `level_zeros` the first
    bin, which holds the zeros, gets the count of the second, as NVIDIA's pytorch-quantization does it.
    """
    counts, levels = histogram.coarse(bins), 2 ** (bits - 1)
    if level_zeros:
        counts[0] = counts[1]
    sizes = np.arange(levels, bins + 1)
    best = sizes[int(np.argmin([divergence(counts, size, levels) for size in sizes]))]
    # The middle of the first bin that is cut; nothing is cut where all bins stay.
    return histogram.limit * min((best + 0.5) / bins, 1.0)


def percentile_threshold(histogram: Histogram, percent: float = 99.99) -> float:
    """Upper edge of the bin within which `percent` of all elements, zeros included, are reached."""
    cumulative = np.cumsum(histogram.counts)
    at = int(np.searchsorted(cumulative, cumulative[-1] * percent / 100))
    return histogram.limit * (at + 1) / len(histogram.counts)
