"""How much noise there is at each training timestep, and what a model output says at that level.

A noisy sample is x_t = sqrt(a) * clean + sqrt(1 - a) * noise, where a is the cumulative alpha of its
timestep t (written with a bar in the papers). Ho et al., "Denoising Diffusion Probabilistic Models",
arXiv 2006.11239, eq. 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .config import Config, bad_value, check_steps, choice, flag, integer, number
from .protocol import Array

_MOST_TIMESTEPS = 100_000
_SMALLEST_BETA, _LARGEST_BETA = 1e-6, 0.9999
_SMALLEST_ALPHA = 1e-24  # below it, a sample would leave the range of float32 on its way

# What diffusers puts in place of a zero alpha where a solver needs a finite sigma.
_ALPHA_OF_PURE_NOISE = 2.0**-24


def mix(clean: Array, noise: Array, alpha: float) -> Array:
    """The sample at cumulative alpha `alpha` that is made of `clean` and `noise`."""
    return math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels a model was trained with, and how its outputs are to be read.

    `alphas_cumprod` has shape (train_timesteps,) and falls; its last entry may be 0 (zero terminal SNR).
    `final_alpha` is the level that the last step of DDIM and PNDM ends at.
    `clip_range` limits the predicted clean sample to [-clip_range, clip_range]; latents are not clipped.
    """

    alphas_cumprod: NDArray[np.float64]
    final_alpha: float = 1.0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    clip_range: float | None = None

    @classmethod
    def from_config(cls, config: Config) -> NoiseSchedule:
        """Reads a diffusers scheduler_config.json.

        An absent key means what it means to diffusers' DDIMScheduler, with one exception: an absent
        `clip_sample` is false, as a clipped latent is never wanted.
        Raises UserError for a value outside its range, and for `thresholding`.
        """
        alphas_cumprod = _alphas_cumprod(config)
        choice(config, "thresholding", (False, None))
        clip_range = number(config, "clip_sample_range", 1.0, 1e-6, 1e6)
        ends_at_one = choice(config, "set_alpha_to_one", (True, False))
        return cls(
            alphas_cumprod=alphas_cumprod,
            final_alpha=1.0 if ends_at_one else float(alphas_cumprod[0]),
            prediction_type=choice(config, "prediction_type", ("epsilon", "v_prediction", "sample")),
            timestep_spacing=choice(config, "timestep_spacing", ("leading", "trailing", "linspace")),
            steps_offset=integer(config, "steps_offset", 0, 0, _MOST_TIMESTEPS),
            clip_range=clip_range if flag(config, "clip_sample") else None,
        )

    @property
    def train_timesteps(self) -> int:
        """The number of noise levels the model was trained with."""
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """(train_timesteps,): noise per unit of signal, rising with the timestep and always finite."""
        alphas = np.where(self.alphas_cumprod == 0, _ALPHA_OF_PURE_NOISE, self.alphas_cumprod)
        return np.sqrt((1 - alphas) / alphas)

    def timesteps(self, steps: int, extra: int = 0) -> NDArray[np.float64]:
        """(steps,) timesteps to visit, falling; whole numbers but for "linspace".

        With `extra`, "leading" and "linspace" divide into that many steps more and leave out the cleanest.
        Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed",
        arXiv 2305.08891, table 2.
        """
        trained = self.train_timesteps
        if self.timestep_spacing == "trailing":
            check_steps(steps, trained)
            # for 61 steps of 1000 and others, rounding errors make this one entry longer than asked
            return np.arange(trained, 0, -trained / steps)[:steps].round() - 1
        check_steps(steps, trained - extra)
        count = steps + extra
        if self.timestep_spacing == "linspace":
            return np.linspace(0, trained - 1, count)[::-1][:steps]
        visited = np.arange(count, dtype=np.float64)[::-1][:steps]
        visited = visited * (trained // count) + self.steps_offset
        if visited[0] >= trained:
            raise UserError(
                f"{steps} steps with steps_offset {self.steps_offset} reach timestep {visited[0]:g}, "
                f"past the last one of the model, {trained - 1}",
                hint="take fewer steps",
            )
        return visited

    def alphas_at(self, timesteps: NDArray[np.float64]) -> list[float]:
        """The cumulative alpha at each of some whole timesteps; `final_alpha` at those below 0."""
        index = timesteps.astype(np.int64)
        alphas = np.where(index < 0, self.final_alpha, self.alphas_cumprod[np.maximum(index, 0)])
        return [float(alpha) for alpha in alphas]

    def check_first(self, alpha: float) -> None:
        """Refuses a run whose first sample is pure noise if all the model predicts is that noise."""
        if alpha == 0 and self.prediction_type == "epsilon":
            raise UserError(
                "scheduler config: with rescale_betas_zero_snr the first step sees pure noise, "
                "of which prediction_type 'epsilon' says nothing",
                hint="a model trained for zero terminal SNR has prediction_type 'v_prediction'",
            )

    def predict(self, model_output: Array, sample: Array, alpha: float) -> tuple[Array, Array]:
        """The clean sample and the noise that a model output says `sample` is made of.

        Source for v: Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models",
        arXiv 2202.00512, section 4: v = sqrt(a) * noise - sqrt(1 - a) * clean.
        """
        signal_scale, noise_scale = math.sqrt(alpha), math.sqrt(1 - alpha)
        if self.prediction_type == "epsilon":
            clean, noise = sample / signal_scale - noise_scale / signal_scale * model_output, model_output
        elif self.prediction_type == "v_prediction":
            clean = signal_scale * sample - noise_scale * model_output
            noise = signal_scale * model_output + noise_scale * sample
        else:
            clean, noise = model_output, sample / noise_scale - signal_scale / noise_scale * model_output
        if self.clip_range is not None:
            clean = np.clip(clean, -self.clip_range, self.clip_range)
        return clean, noise


def _alphas_cumprod(config: Config) -> NDArray[np.float64]:
    """(num_train_timesteps,): the product of 1 - beta up to and with each timestep."""
    # in float32 as at training: close to timestep 0, its rounding of 1 - alpha is what the model knows
    betas = _betas(config).astype(np.float32)
    alphas = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32).astype(np.float64)
    if alphas[-1] < _SMALLEST_ALPHA:
        raise UserError(
            f"scheduler config: the betas leave {alphas[-1]:.3g} of the signal at the last timestep, "
            f"less than {_SMALLEST_ALPHA:g}",
            hint="lower beta_end or num_train_timesteps",
        )
    return _rescaled_to_zero_snr(alphas) if flag(config, "rescale_betas_zero_snr") else alphas


def _betas(config: Config) -> NDArray[np.float64]:
    """(num_train_timesteps,): the share of the variance that is replaced by noise at each timestep."""
    count = integer(config, "num_train_timesteps", 1000, 1, _MOST_TIMESTEPS)
    trained = config.get("trained_betas")
    if trained is not None:
        return _trained_betas(trained, count)
    schedule = choice(config, "beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2"))
    if schedule == "squaredcos_cap_v2":
        # Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672, eq. 17
        kept = np.cos((np.linspace(0, 1, count + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        betas: NDArray[np.float64] = np.minimum(1 - kept[1:] / kept[:-1], 0.999)
        return betas
    start = number(config, "beta_start", 0.0001, _SMALLEST_BETA, _LARGEST_BETA)
    end = number(config, "beta_end", 0.02, _SMALLEST_BETA, _LARGEST_BETA)
    if schedule == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    return np.linspace(start, end, count)


def _trained_betas(values: object, count: int) -> NDArray[np.float64]:
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise bad_value("trained_betas", f"a list of num_train_timesteps = {count} numbers", values)
    each = ({"trained_betas": value} for value in values)
    return np.array([number(one, "trained_betas", 0, _SMALLEST_BETA, _LARGEST_BETA) for one in each])


def _rescaled_to_zero_snr(alphas: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same first level, and none of the signal left at the last. Source: arXiv 2305.08891, alg. 1."""
    if len(alphas) < 2:
        raise bad_value("num_train_timesteps", "2 or more for rescale_betas_zero_snr", len(alphas))
    signal = np.sqrt(alphas)
    rescaled: NDArray[np.float64] = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    return rescaled**2
