"""The exact velocity field of Gaussian-mixture data: a perfect network without training.

Every claim about solvers, sampling, calibration and stopping rules can be checked against it, because the posterior
that a perfect classifier would report is known in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class GaussianMixtureFlow:
    """Symmetric flow of the data `label ~ prior, image | label = c ~ N(means[c], sigma^2 I)`, code `codes[c]`.

    The image stream goes from N(0, I) at t = 0 to the data at t = 1, the semantic stream from the code of the label
    at t = 0 to N(0, I) at t = 1. With `v(t) = (1 - t)^2 + t^2 sigma^2` the classes' responsibilities are

        r_c ~ prior_c N(image_t; t means_c, v I) N(semantic_t; (1 - t) codes_c, t^2 I)

    and the marginal velocity, the mean of the conditional ones, is

        velocity_image    = sum_c r_c [ means_c + ((t sigma^2 - (1 - t)) / v) (image_t - t means_c) ]
        velocity_semantic = sum_c r_c (semantic_t - codes_c) / t

    At t = 0 the semantic stream is a code: r picks the nearest one (equal codes share by the rest of the formula), and
    the semantic velocity is its limit given no information on the noise, `-code`.

    Args:
        means: [n_classes, C, ...] float32 or float64; mean picture of each class, any number of trailing axes.
        codes: [n_classes, K] or [n_classes, K, ...] with the trailing axes of `means`, same dtype and device.
        sigma: Standard deviation of the pictures of a class; > 0.
        prior: [n_classes], > 0; normalised here; default uniform.

    Raises:
        TypeError: Dtypes differ, or are not float32 or float64.
        ValueError: Shapes do not fit, `sigma` or a prior is not positive.

    Numerics: computed in the dtype of `means`, and responsibilities by a softmax of log weights from which the terms
        that all classes share have been cancelled by hand, so they neither overflow nor underflow. No value is read
        back to the host. Differentiable in the state.

    Source: the paths of SymmFlow (arXiv 2506.10634); the marginal velocity of flow matching (arXiv 2210.02747).
    """

    def __init__(
        self, means: Tensor, codes: Tensor, sigma: float, prior: Tensor | Sequence[float] | None = None
    ) -> None:
        """Check and keep the mixture's parameters."""
        if means.dtype not in (torch.float32, torch.float64) or codes.dtype != means.dtype:
            raise TypeError(
                f"means and codes must both be float32 or float64; got means {means.dtype}, codes {codes.dtype}"
            )
        space = tuple(means.shape[2:])
        if means.ndim < 2 or codes.ndim < 2 or codes.shape[0] != means.shape[0] or means.shape[0] < 1:
            raise ValueError(
                "means must be [n_classes, C, ...] and codes [n_classes, K] or [n_classes, K, ...]; "
                f"got {list(means.shape)} and {list(codes.shape)}"
            )
        if codes.ndim == 2:
            codes = codes.reshape(*codes.shape, *([1] * len(space))).expand(*codes.shape, *space)
        if tuple(codes.shape[2:]) != space:
            raise ValueError(f"codes must have the trailing axes of means, {list(space)}; got {list(codes.shape[2:])}")
        if not (sigma > 0.0 and math.isfinite(sigma)):
            raise ValueError(f"sigma must be a finite number > 0; got {sigma}")
        n_classes = means.shape[0]
        weights = torch.ones(n_classes) if prior is None else torch.as_tensor(prior)
        weights = weights.to(means)
        if weights.shape != (n_classes,) or not bool((weights > 0).all()):
            raise ValueError(f"prior must be [n_classes] = [{n_classes}] and > 0; got {prior}")
        self.means = means
        self.codes = codes.contiguous()
        self.sigma = float(sigma)
        self.prior = weights / weights.sum()

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.means.shape[0]

    @property
    def image_channels(self) -> int:
        """Number of leading channels of the state that belong to the picture."""
        return self.means.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GaussianMixtureFlow:
        """Return the same flow on another device or in another dtype."""
        means, codes, prior = (p.to(device=device, dtype=dtype) for p in (self.means, self.codes, self.prior))
        return GaussianMixtureFlow(means, codes, self.sigma, prior)

    def velocity_field(self, z: Tensor, t: float | Tensor) -> Tensor:
        """Return the exact marginal velocity of both streams.

        Args:
            z: [N, C + K, ...] state, picture channels first; dtype and device of the flow.
            t: One time for all (a number or a 0-dim tensor), [N] one per item, or [1, 2] or [N, 2] as
                (t_image, t_semantic); in [0, 1].

        Returns:
            [N, C + K, ...] velocity, like `z`. With independent times, each stream's velocity is with respect to its
            own time.

        Raises:
            TypeError: `z` has another dtype.
            ValueError: `z` or `t` has another shape.
        """
        self._check_state(z)
        n_items, space = z.shape[0], z.shape[2:]
        t_image, t_semantic = self._split_times(z, t)
        image = z[:, : self.image_channels].flatten(1)  # [N, C*P]
        semantic = z[:, self.image_channels :].flatten(1)  # [N, K*P]
        means, codes = self.means.flatten(1), self.codes.flatten(1)  # [n_classes, C*P], [n_classes, K*P]

        variance = (1.0 - t_image).square() + t_image.square() * self.sigma**2  # [N | 1, 1]
        at_code = t_semantic == 0.0
        safe_t = torch.where(at_code, 1.0, t_semantic)
        code_logits = _log_weights(semantic, codes, 1.0 - safe_t, safe_t.square())
        code_logits = torch.where(at_code, _nearest_only(semantic, codes), code_logits)
        logits = self.prior.log() + _log_weights(image, means, t_image, variance) + code_logits
        responsibility = logits.softmax(dim=1)  # [N, n_classes]

        mean, code = responsibility @ means, responsibility @ codes
        slope = (t_image * self.sigma**2 - (1.0 - t_image)) / variance
        velocity_image = mean + slope * (image - t_image * mean)
        velocity_semantic = torch.where(at_code, -code, (semantic - code) / safe_t)
        return torch.cat(
            [
                velocity_image.reshape(n_items, -1, *space),
                velocity_semantic.reshape(n_items, -1, *space),
            ],
            dim=1,
        )

    def held_image_field(self, z: Tensor, t: float | Tensor) -> Tensor:
        """Return the velocity of the conditional classification flow: the picture is held at t_image = 1.

        Args:
            z: [N, C + K, ...] state; its picture channels are the clean pictures.
            t: Time of the semantic stream: a number, a 0-dim tensor or [N].

        Returns:
            [N, C + K, ...]; zero in the picture's channels.
        """
        velocity = self.velocity_field(z, self._pair_times(z, t, held=1.0, held_first=True))
        velocity[:, : self.image_channels] = 0.0
        return velocity

    def held_semantic_field(self, z: Tensor, t: float | Tensor) -> Tensor:
        """Return the velocity of the conditional generation flow: the code is held at t_semantic = 0.

        Args:
            z: [N, C + K, ...] state; its semantic channels are codes.
            t: Time of the image stream: a number, a 0-dim tensor or [N].

        Returns:
            [N, C + K, ...]; zero in the semantic channels.
        """
        velocity = self.velocity_field(z, self._pair_times(z, t, held=0.0, held_first=False))
        velocity[:, self.image_channels :] = 0.0
        return velocity

    def posterior(self, image: Tensor) -> Tensor:
        """Return the true `p(label | image)`.

        Args:
            image: [N, C, ...] clean pictures; dtype and device of the flow.

        Returns:
            [N, n_classes]; rows sum to one.
        """
        variance = torch.full((1, 1), self.sigma**2, dtype=image.dtype, device=image.device)
        logits = _log_weights(image.flatten(1), self.means.flatten(1), torch.ones_like(variance), variance)
        return (self.prior.log() + logits).softmax(dim=1)

    def sample_labels(self, n_items: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw labels from the prior: [n_items] int64."""
        return torch.multinomial(self.prior, n_items, replacement=True, generator=generator)

    def sample_images(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one picture per label: [N, C, ...] for labels [N]."""
        return self.means[labels] + self.sigma * self._randn(self.means[labels].shape, generator)

    def sample(self, n_items: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw labelled pictures: ([n_items, C, ...], [n_items] int64)."""
        labels = self.sample_labels(n_items, generator)
        return self.sample_images(labels, generator), labels

    def classification_start(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the state at t = 1, [picture ; noise]: [N, C + K, ...] for pictures [N, C, ...]."""
        noise = self._randn((image.shape[0], *self.codes.shape[1:]), generator)
        return torch.cat([image, noise], dim=1)

    def generation_start(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the state at t = 0, [noise ; code]: [N, C + K, ...] for labels [N]."""
        noise = self._randn((labels.shape[0], *self.means.shape[1:]), generator)
        return torch.cat([noise, self.codes[labels]], dim=1)

    def nearest_label(self, z: Tensor) -> Tensor:
        """Return the class whose code is nearest to the semantic channels of `z` [N, C + K, ...]: [N] int64."""
        semantic = z[:, self.image_channels :].flatten(1)
        return _nearest_score(semantic, self.codes.flatten(1)).argmax(dim=1)

    def _check_state(self, z: Tensor) -> None:
        if z.dtype != self.means.dtype:
            raise TypeError(f"z must have the flow's dtype {self.means.dtype}; got {z.dtype}")
        wanted = (self.image_channels + self.codes.shape[1], *self.means.shape[2:])
        if tuple(z.shape[1:]) != wanted:
            raise ValueError(f"z must be [N, {', '.join(map(str, wanted))}]; got {list(z.shape)}")

    def _split_times(self, z: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(t, Tensor):
            both = z.new_full((1, 1), float(t))
            return both, both
        t = t.to(z)
        if t.ndim == 0:
            return t.reshape(1, 1), t.reshape(1, 1)
        if t.shape == (z.shape[0],):
            return t[:, None], t[:, None]
        if t.ndim == 2 and t.shape[0] in (1, z.shape[0]) and t.shape[1] == 2:
            return t[:, :1], t[:, 1:]
        raise ValueError(f"t must be a number, [N], [1, 2] or [N, 2] with N = {z.shape[0]}; got {list(t.shape)}")

    def _pair_times(self, z: Tensor, t: float | Tensor, *, held: float, held_first: bool) -> Tensor:
        if isinstance(t, Tensor) and t.ndim > 1:
            raise ValueError(f"t must be a number, a 0-dim tensor or [N]; got {list(t.shape)}")
        moving = t.to(z).reshape(-1) if isinstance(t, Tensor) else z.new_full((1,), float(t))
        fixed = torch.full_like(moving, held)
        return torch.stack([fixed, moving] if held_first else [moving, fixed], dim=1)

    def _randn(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=self.means.dtype, device=self.means.device)


def _log_weights(x: Tensor, centres: Tensor, scale: Tensor, variance: Tensor) -> Tensor:
    """Log density of N(scale * centres_c, variance I) at x, without the terms that do not depend on c: [N, n_classes].

    `-|x - s m|^2 / 2v = (s x.m - s^2 |m|^2 / 2) / v - |x|^2 / 2v`.
    """
    return (scale / variance) * (x @ centres.T - 0.5 * scale * centres.square().sum(1))


def _nearest_score(x: Tensor, centres: Tensor) -> Tensor:
    """Half of (|x|^2 - squared distance) to each centre: the largest entry is the nearest centre. [N, n_classes]."""
    return x @ centres.T - 0.5 * centres.square().sum(1)


def _nearest_only(x: Tensor, centres: Tensor) -> Tensor:
    """Log weight 0 for the nearest centre and those equal to it, minus infinity for the others: [N, n_classes]."""
    is_same = torch.stack([(centres == centre).all(dim=1) for centre in centres])  # [n_classes, n_classes]
    chosen = is_same[_nearest_score(x, centres).argmax(dim=1)]
    return torch.zeros_like(chosen, dtype=x.dtype).masked_fill(~chosen, -math.inf)
