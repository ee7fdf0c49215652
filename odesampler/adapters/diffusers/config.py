"""The part of a scheduler that is about the model alone: what its config says, and noise added to images.

x_t = alpha x0 + std noise,     v = alpha noise - std x0,     at the times that the network is told
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from odesampler.adapters.diffusers.kinds import FLOWS, PLAIN, TABLES, facts_of
from odesampler.adapters.diffusers.schedules import Reading, read
from odesampler.adapters.diffusers.terms import sigma_of
from odesampler.adapters.diffusers.times import OURS
from odesampler.adapters.diffusers.walk import fixed_grid
from odesampler.grid import parsed_grid
from odesampler.precision import finest_dtype
from odesampler.registry import find_solver, spec_of
from odesampler.schedule import VP, RectifiedFlow
from odesampler.tuned import Tuned

WORDS = {
    "final_sigmas_type": ("zero", "sigma_min"),
    "convention": (None, "source", "target"),
    "variance_type": (  # what a network may say besides; only learned ones matter here
        None,
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
        "learned",
        "learned_range",
    ),
}


class Configured(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the two disagree on a type, in theirs too
    """What the config of an `OdeScheduler` says, and what of a scheduler needs no more than that.

    Args:
        solver: A name that `ods.solvers()` lists, with arguments if need be, "multistep(predictor=3)". None: that which
            `ods.sample` takes for so many steps; rising, `ods.encode`. Or what `ods.tune` found, an `ods.Tuned` or its
            file: the config then holds all of it, the grid too.
        grid: A named grid, of `ods.grids()`, or "default": that of `ods.sample`; or the sigmas of one, falling. None:
            the times that the scheduler of this config would take, by its timestep_spacing, shift and the like.
        rising: From image to noise, to invert; see `inverse`.
        convention: How to rise with a solver that cannot be undone: "source" (default) or "target", as in `ods.encode`.
        config_of: The class of diffusers whose config this is: what a config leaves open is clear from it.
        final_sigmas_type: "zero": the last step returns the predicted image. "sigma_min": the image is the point at
            sigma_min, as for `ods.encode`; diffusers says so also with set_alpha_to_one=False, which is not heeded.
        num_train_timesteps: This and all below is as in diffusers. `from_config` also keeps what is not named here.
        beta_start: As there.
        beta_end: As there.
        beta_schedule: As there.
        trained_betas: As there.
        rescale_betas_zero_snr: As there.
        prediction_type: As there.
        variance_type: "learned" and "learned_range" drop the second half of what the network says.
        clip_sample: As there. Off by default, but taken over from a config.
        clip_sample_range: As there.
        thresholding: As there.
        dynamic_thresholding_ratio: As there.
        sample_max_value: As there.
        timestep_spacing: As there; "linspace" has whole times.
        steps_offset: As there, for "leading".
        use_karras_sigmas: Between the ends of the schedule; likewise the next three.
        use_exponential_sigmas: As there.
        use_beta_sigmas: As there.
        use_lu_lambdas: As there.
        use_flow_sigmas: As there.
        flow_shift: As there.
        shift: As there.
        use_dynamic_shifting: As there.
        base_shift: As there.
        max_shift: As there.
        base_image_seq_len: As there.
        max_image_seq_len: As there.
        time_shift_type: As there.
        shift_terminal: As there.

    Raises:
        ValueError: An unknown solver, or a setting that cannot be meant; names the key.
    """

    _compatibles = [*(e.name for e in KarrasDiffusionSchedulers), *FLOWS]  # noqa: RUF012  # a list in all of theirs
    _read: tuple[Any, Reading] | None = None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        solver: str | Tuned | None = None,
        grid: str | Sequence[float] | None = None,
        rising: bool = False,
        convention: str | None = None,
        config_of: str = "DDIMScheduler",
        final_sigmas_type: str = "zero",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        variance_type: str | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
    ) -> None:
        _check_words(final_sigmas_type=final_sigmas_type, convention=convention, variance_type=variance_type)
        if isinstance(grid, str) and grid != OURS:
            parsed_grid(grid)  # raises
        register: Any = self.register_to_config
        tuned = solver if solver is None or isinstance(solver, Tuned) else find_solver(solver)
        if isinstance(tuned, Tuned):
            grid = [*tuned.grid.sigmas]
            register(**_kept(tuned, rising))
        elif solver is not None:
            found = fixed_grid(solver)  # type: ignore[arg-type]  # no Tuned; raises, as does `reading`
            if rising and found.stochastic:
                raise ValueError(f"scheduler config: solver={solver!r} draws noise, which cannot go up: rising=True")
        flow = isinstance(self.reading.schedule, RectifiedFlow)
        if config_of in FLOWS:  # told so, pipelines such as Flux's leave the times to the scheduler
            register(use_flow_sigmas=grid is not None)
        self.timesteps = torch.arange(num_train_timesteps, dtype=torch.float32).flip(0) + flow

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the model of another, of ours or of theirs: `from_config(pipe.scheduler.config)`.

        All that the config says is taken over as it stands. Schedulers of diffusers drop what was a default of another
        class and take their own instead, which may be another beta table.

        Args:
            config: The config of a scheduler, or the scheduler.
            return_unused_kwargs: Also return what is no argument of the constructor.
            kwargs: Arguments of the constructor, instead of those of the config.

        Raises:
            TypeError: Neither a scheduler nor a config.
            ValueError: A config that cannot be read; names the key.
        """
        made: Any = super().from_config(_taken_over(config, kwargs.get("config_of")), return_unused_kwargs, **kwargs)
        _ = (made[0] if return_unused_kwargs else made).reading  # raises, now that all keys are there
        return made

    @property
    def facts(self) -> Any:
        """The config, whose keys can be read as attributes, which its type does not say."""
        return self.config

    @property
    def reading(self) -> Reading:
        """What the config says about the model."""
        facts = self.facts
        if self._read is None or self._read[0] is not facts:  # pipelines replace it
            self._read = (facts, read(facts))
        return self._read[1]

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) alpha^2 at the whole times of the model's table, float32.

        Raises:
            AttributeError: The model has no table.
        """
        schedule = self.reading.schedule
        if not isinstance(schedule, VP):
            raise AttributeError(f"a model with {type(schedule).__name__} has no table, so no alphas_cumprod")
        return torch.tensor(schedule.alpha_bar, dtype=torch.float32)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`original_samples` (batch, *shape) with `noise` (batch, *shape), as the network knows them at `timesteps`.

        Args:
            original_samples: Images, or latents.
            noise: From N(0, 1).
            timesteps: One, or one a sample; whole or not.
        """
        alpha, std = self._scales(timesteps, original_samples)
        return alpha * original_samples + std * noise.to(original_samples.device, original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name, and with the order of arguments, that it has for flows."""
        return self.add_noise(sample, noise, torch.as_tensor(timestep))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a network with prediction_type="v_prediction" should answer; arguments as for `add_noise`."""
        alpha, std = self._scales(timesteps, sample)
        return alpha * noise.to(sample.device, sample.dtype) - std * sample

    def __len__(self) -> int:
        return int(self.facts.num_train_timesteps)

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, std) at `timesteps`, which broadcast against `like` (batch, *shape)."""
        times = torch.as_tensor(timesteps).flatten()
        if len(times) not in (1, len(like)):
            raise ValueError(f"timesteps must be one, or one a sample: {len(like)} samples, got {len(times)}")
        schedule, sigma = self.reading.schedule, sigma_of(self.reading, times.to(finest_dtype(times.device)))
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha, std = (f(sigma).to(like.device, like.dtype).reshape(shape) for f in (schedule.alpha, schedule.std))
        return alpha, std


def _check_words(**given: str | None) -> None:
    """Raises: ValueError: one that is not known under its key."""
    for key, value in given.items():
        if value not in WORDS[key]:
            raise ValueError(f"scheduler config: {key}={value!r} is not one of {', '.join(map(str, WORDS[key]))}")


def _kept(tuned: Tuned, rising: bool) -> dict[str, Any]:
    """What a config keeps of a recipe, as JSON can; what the recipe has to say is said now."""
    tuned.check_task(encoding=rising)
    if tuned.warning:  # the network is not known here, so not whether it was tuned for it
        warnings.warn(tuned.warning, stacklevel=6)
    return {"solver": spec_of(tuned.solver), "grid": [str(s) if math.isinf(s) else s for s in tuned.grid]}


def _taken_over(config: Any, config_of: str | None) -> dict[str, Any]:
    """`config`, of which class it is, unless that is given, and what that class takes for what is not said."""
    if config_of is None:
        given, kind = facts_of(config)
    else:
        given, kind = getattr(config, "config", config), config_of
    facts = {**TABLES.get(kind, {}), **given}
    facts.pop("_use_default_values", None)
    if kind != PLAIN:
        facts["config_of"] = kind
    if kind in FLOWS:
        facts.setdefault("prediction_type", "flow_prediction")
    return facts
