"""What per-image scores say of every two entries: sums over the test images of squared differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from pugdft.leaderboard.crossed import mean_squares

Images = Mapping[int, np.ndarray]
"""The score of every test image by seed, in one order for all entries of a group."""


class ImageSums:
    """For all pairs of entries that have per-image scores, split by the seeds they have in common.

    Attributes:
        num_images: test images.

    Args:
        images: of each entry, None where they are not known.
        num_images: of each array.
    """

    def __init__(self, images: Sequence[Images | None], num_images: int) -> None:
        self.num_images = num_images
        self._images = images
        # Σ_images (Σ_seeds d)² and Σ_images Σ_seeds d² over common seeds; NaN where not known.
        self._of_sums = np.full((len(images), len(images)), np.nan)
        self._of_each = self._of_sums.copy()
        self._fill()

    def paired(
        self, first: int, num_seeds: np.ndarray, differences: np.ndarray, variances: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each difference between ``first`` and a later entry: ``Spread.images`` and ``Spread.residual``.

        Args:
            first: position of an entry.
            num_seeds: common ones, for each later entry; so are the others.
            differences: mean over them.
            variances: over them, as they are.
        """
        later, images = slice(first + 1, None), self.num_images
        with np.errstate(divide="ignore", invalid="ignore"):
            centre = num_seeds * images * differences**2
            seeds = (num_seeds - 1) * images * variances
            by_image = np.maximum(self._of_sums[first, later] / num_seeds - centre, 0.0)
            rest = np.maximum(self._of_each[first, later] - centre - seeds - by_image, 0.0)
            residual = rest / ((num_seeds - 1) * (images - 1)) / (num_seeds * images)
            drawn = np.maximum(by_image / (images - 1) / (num_seeds * images) - residual, 0.0)
        known = (num_seeds > 1) & np.isfinite(drawn)
        return np.where(known, drawn, 0.0), np.where(known, residual, 0.0)

    def unpaired(self, first: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Likewise against entries with seeds of their own: the same images met both."""
        of_means, residuals = self._own_means
        residual = residuals[first] + residuals[others]
        drawn = np.maximum(of_means[first, others] / self.num_images - residual, 0.0)
        known = np.isfinite(drawn)
        return np.where(known, drawn, 0.0), np.where(known, residual, 0.0)

    @cached_property
    def _own_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Variances over images of the difference of every two entries' means over their own seeds, and the
        residual's share of the variance of each entry's mean; NaN where not known.
        """
        rows = [position for position, images in enumerate(self._images) if images and len(images) > 1]
        means, residuals = np.empty((len(rows), self.num_images)), np.full(len(self._images), np.nan)
        for at, row in enumerate(rows):
            images = self._images[row] or {}
            values = np.stack([images[seed] for seed in sorted(images)])
            means[at] = values.mean(axis=0)
            residuals[row] = mean_squares(values)[2] / values.size
        centres = means.mean(axis=1)
        variances = np.full(self._of_sums.shape, np.nan)
        squares = _distances(means - centres[:, None])
        variances[np.ix_(rows, rows)] = np.maximum(squares, 0.0) / (self.num_images - 1)
        return variances, residuals

    def _fill(self) -> None:
        """One product of matrices for each set of seeds that some two entries have in common."""
        by_seeds: dict[frozenset[int], list[int]] = defaultdict(list)
        for position, images in enumerate(self._images):
            if images and len(images) > 1:
                by_seeds[frozenset(images)].append(position)
        patterns = list(by_seeds)
        blocks: dict[frozenset[int], list[tuple[frozenset[int], frozenset[int]]]] = defaultdict(list)
        for number, one in enumerate(patterns):
            for two in patterns[number:]:
                if len(one & two) > 1:
                    blocks[one & two].append((one, two))
        for common, pairs in blocks.items():
            rows = sorted({row for pair in pairs for pattern in pair for row in by_seeds[pattern]})
            place = {row: at for at, row in enumerate(rows)}
            of_sums, of_each = self._squared_distances(rows, sorted(common))
            for one, two in pairs:
                here = np.ix_(by_seeds[one], by_seeds[two])
                there = np.ix_([place[row] for row in by_seeds[one]], [place[row] for row in by_seeds[two]])
                for whole, part in ((self._of_sums, of_sums), (self._of_each, of_each)):
                    whole[here] = part[there]
                    whole.T[here] = part[there]

    def _squared_distances(self, rows: Sequence[int], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Between entries: of their sums over seeds, and of every seed's images, added up."""
        images = [known for row in rows if (known := self._images[row])]
        # Counts are whole numbers: single precision is exact as long as it has room for them.
        are_counts = all(each[seed].dtype == bool for each in images for seed in seeds)
        kind = np.float32 if are_counts and len(seeds) ** 2 * self.num_images < 2**24 else np.float64
        sums = np.zeros((len(rows), self.num_images), kind)
        of_each = np.zeros((len(rows), len(rows)))
        for seed in seeds:
            values = np.stack([each[seed] for each in images]).astype(kind)
            of_each += _distances(values)
            sums += values
        return _distances(sums), of_each


def _distances(values: np.ndarray) -> np.ndarray:
    products = (values @ values.T).astype(float)
    own = np.diag(products)
    return np.asarray(own[:, None] + own[None, :] - 2 * products)
