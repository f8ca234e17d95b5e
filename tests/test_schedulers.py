"""Schedulers: by hand on three noise levels, against diffusers step by step, and on hostile configs."""

from __future__ import annotations

import inspect
import math
import warnings

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.runtime.errors import UserError
from outzoom.runtime.schedulers import (
    DDIM,
    LCM,
    PNDM,
    SCHEDULERS,
    NoiseSchedule,
    default_scheduler,
    make_scheduler,
)

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}

REFERENCES = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpm-solver": diffusers.DPMSolverMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
DETERMINISTIC = ["ddim", "pndm", "euler", "dpm-solver"]

# Both round samples to float32 (6e-8 of their value) some five times a step, for up to 51 steps; diffusers
# rounds its coefficients, too. Over all the cases below, the largest difference met is 3.1e-6 of the sample.
TOLERANCE = 1e-5


def reference(name, config, steps):
    """The diffusers scheduler, given the keys it knows."""
    kind = REFERENCES[name]
    known = inspect.signature(kind.__init__).parameters
    scheduler = kind(**{key: value for key, value in config.items() if key in known})
    with warnings.catch_warnings():
        # diffusers makes NumPy arrays of tensors in a way that torch's __array__ has not followed yet
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def one(value):
    return np.array([value], np.float32)


def assert_close(ours, theirs, tolerance=TOLERANCE):
    """Equal within `tolerance` of the largest value: a wrong scale does not pass."""
    theirs = theirs.numpy()
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def assert_same_run(name, config, steps, *, tolerance=TOLERANCE, timestep_tolerance=0.0):
    """Runs both from one sample on one sequence of model outputs, each on its own trajectory."""
    shape = (1, 4, 8, 8)
    generator = torch.Generator().manual_seed(20)
    step_noise, same_step_noise = torch.Generator().manual_seed(21), torch.Generator().manual_seed(21)
    theirs, ours = reference(name, config, steps), make_scheduler(name, config, steps)

    assert ours.timesteps.dtype == np.float32
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=0, atol=timestep_tolerance)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=TOLERANCE)

    their_sample = torch.randn(shape, generator=generator) * theirs.init_noise_sigma
    sample = their_sample.numpy()
    for index, timestep in enumerate(theirs.timesteps):
        scaled = theirs.scale_model_input(their_sample, timestep)
        assert_close(ours.scale_model_input(sample, index), scaled, tolerance)
        # like a model's, the output depends on the sample; the rest keeps the history terms large
        drawn = torch.randn(shape, generator=generator)
        their_output = 0.5 * torch.tanh(scaled) + drawn
        output = 0.5 * np.tanh(ours.scale_model_input(sample, index)) + drawn.numpy()
        takes_generator = "generator" in inspect.signature(theirs.step).parameters
        extra = {"generator": step_noise} if takes_generator else {}
        their_sample = theirs.step(their_output, timestep, their_sample, **extra).prev_sample
        is_last = index == len(theirs.timesteps) - 1
        noise = None
        if ours.needs_noise and not is_last:
            noise = torch.randn(shape, generator=same_step_noise).numpy()
        sample = ours.step(output, index, sample, noise)
        assert_close(sample, their_sample, tolerance)


CONFIGS = {
    "leading": {},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "linear-betas": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "cosine-betas": {"beta_schedule": "squaredcos_cap_v2"},
    "ends-at-one": {"set_alpha_to_one": True, "steps_offset": 0},
}


@pytest.mark.parametrize("steps", [1, 4, 20, 30, 50])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_equals_that_of_diffusers(name, changes, prediction_type, steps):
    config = {**STABLE_DIFFUSION, **changes, "prediction_type": prediction_type}
    assert_same_run(name, config, steps)


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpm-solver", "lcm"])
def test_every_step_from_zero_terminal_snr_equals_that_of_diffusers(name, spacing, steps):
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": spacing}
    # diffusers takes Euler's first step as a difference of two float32 numbers near 4096 * 3, which are
    # rounded to 1/1024 each
    starts_at_4096 = name == "euler" and spacing == "trailing"
    tolerance = 1e-3 if starts_at_4096 else TOLERANCE
    assert_same_run(name, {**STABLE_DIFFUSION, **changes}, steps, tolerance=tolerance)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm-solver", "lcm"])
def test_a_model_that_predicts_the_clean_sample_runs_as_in_diffusers(name):
    assert_same_run(name, {**STABLE_DIFFUSION, "prediction_type": "sample"}, 20)


@pytest.mark.parametrize("name", ["ddim", "lcm"])
def test_clipping_equals_that_of_diffusers(name):
    assert_same_run(name, {**STABLE_DIFFUSION, "clip_sample": True, "clip_sample_range": 1.5}, 20)


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("name", ["euler", "dpm-solver"])
def test_every_step_on_karras_sigmas_equals_that_of_diffusers(name, steps):
    # Euler tells the UNet fractions of a timestep here, found from logs of float32 sigmas
    config = {**STABLE_DIFFUSION, "use_karras_sigmas": True}
    assert_same_run(name, config, steps, timestep_tolerance=1e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_config_without_keys_means_what_it_means_to_diffusers(name):
    # but for the two where our default is the one that a latent diffusion model needs
    config = {"clip_sample": False, "skip_prk_steps": True}
    assert_same_run(name, config, 10)
    empty, explicit = make_scheduler(name, {}, 10), make_scheduler(name, config, 10)
    assert empty.timesteps.tolist() == explicit.timesteps.tolist()
    assert empty.step(one(3.0), 0, one(1.0), one(0.5)) == explicit.step(one(3.0), 0, one(1.0), one(0.5))


@pytest.mark.parametrize("solver_type", ["bh1", "bh2", "logrho"])
def test_dpm_solver_reads_the_solver_types_of_unipc_and_deis_like_diffusers(solver_type):
    assert_same_run("dpm-solver", {**STABLE_DIFFUSION, "solver_type": solver_type}, 10)


def test_ddim_with_noise_equals_that_of_diffusers():
    theirs, ours = reference("ddim", STABLE_DIFFUSION, 10), DDIM(STABLE_DIFFUSION, 10, eta=1.0)
    generator = torch.Generator().manual_seed(3)
    their_sample = torch.randn((1, 4, 8, 8), generator=generator)
    sample = their_sample.numpy()
    assert ours.needs_noise
    for index, timestep in enumerate(theirs.timesteps):
        output, noise = torch.randn((2, 1, 4, 8, 8), generator=generator)
        their_sample = theirs.step(output, timestep, their_sample, eta=1.0, variance_noise=noise).prev_sample
        sample = ours.step(output.numpy(), index, sample, noise.numpy())
        assert_close(sample, their_sample)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_adding_noise_equals_diffusers_at_every_index(name, spacing):
    config = {**STABLE_DIFFUSION, "timestep_spacing": spacing}
    ours = make_scheduler(name, config, 20)
    clean, noise = torch.randn((2, 3, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    for index in range(len(ours.timesteps)):
        theirs = reference(name, config, 20)
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(index)
        noisy = theirs.add_noise(clean, noise, theirs.timesteps[index : index + 1])
        assert_close(ours.add_noise(clean.numpy(), noise.numpy(), index), noisy)


# By hand: three levels where the square roots are short. sqrt(a) is 0.9, 0.8, 0.6; sqrt(1 - a) is
# 0.43589, 0.6, 0.8; and so sigma is 0.48432, 0.75, 4/3.
BY_HAND = {
    "num_train_timesteps": 3,
    "trained_betas": [1 - 0.81, 1 - 0.64 / 0.81, 1 - 0.36 / 0.64],
    "timestep_spacing": "trailing",
}


def test_cumulative_alphas_are_the_products_of_what_the_betas_leave():
    assert NoiseSchedule.from_config(BY_HAND).alphas_cumprod == pytest.approx([0.81, 0.64, 0.36])


def test_zero_terminal_snr_keeps_the_first_level_and_empties_the_last():
    rescaled = NoiseSchedule.from_config({**BY_HAND, "rescale_betas_zero_snr": True})
    # sqrt(a): 0.9, 0.8, 0.6 less 0.6, times 0.9 / 0.3
    assert rescaled.alphas_cumprod == pytest.approx([0.9**2, 0.6**2, 0])


@pytest.mark.parametrize(
    ("prediction_type", "clean", "noise"),
    [("epsilon", 1.0, 0.5), ("v_prediction", 0.2, 1.1), ("sample", 0.5, 0.875)],
)
def test_a_model_output_splits_a_sample_into_clean_and_noise(prediction_type, clean, noise):
    schedule = NoiseSchedule.from_config({**BY_HAND, "prediction_type": prediction_type})
    predicted = schedule.predict(one(0.5), one(1.0), alpha=0.36)
    assert np.concatenate(predicted) == pytest.approx([clean, noise])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddim", 0.8 * 1.0 + 0.6 * 0.5),
        ("pndm", 0.8 * 1.0 + 0.6 * 0.5),
        ("dpm-solver", 0.8 * 1.0 + 0.6 * 0.5),
        ("euler", 1.0 + (0.75 - 4 / 3) * 0.5),
    ],
)
def test_the_first_step_goes_from_the_third_level_to_the_second(name, expected):
    scheduler = make_scheduler(name, BY_HAND, 3)
    assert scheduler.timesteps[:2].tolist() == [2, 1]
    assert scheduler.step(one(0.5), 0, one(1.0)) == pytest.approx(expected)


def test_the_second_call_of_pndm_repeats_the_first_step_along_the_mean_output():
    scheduler = PNDM(BY_HAND, 3)
    assert scheduler.timesteps.tolist() == [2, 1, 1, 0]
    assert scheduler.step(one(0.5), 0, one(1.0)) == pytest.approx(1.1)
    # mean 0.3; clean (1 - 0.8 * 0.3) / 0.6
    assert scheduler.step(one(0.1), 1, one(1.1)) == pytest.approx(0.8 * 0.76 / 0.6 + 0.6 * 0.3)


def test_the_second_step_of_dpm_solver_extrapolates_the_clean_sample():
    scheduler = make_scheduler("dpm-solver", BY_HAND, 3)
    scheduler.step(one(0.5), 0, one(1.0))
    sigmas = [4 / 3, 0.75, math.sqrt(0.19) / 0.9]
    clean = (1.1 - 0.6 * 0.7) / 0.8  # after 1.0 in the first step
    steps_in_lambda = math.log(sigmas[0] / sigmas[1]), math.log(sigmas[1] / sigmas[2])
    extrapolated = clean + (clean - 1.0) / 2 * steps_in_lambda[1] / steps_in_lambda[0]
    expected = math.sqrt(0.19) / 0.6 * 1.1 + 0.9 * (1 - sigmas[2] / sigmas[1]) * extrapolated
    assert scheduler.step(one(0.7), 1, one(1.1)) == pytest.approx(expected)


def test_lcm_lands_near_the_clean_sample_and_noises_it_to_the_next_level():
    scheduler = LCM({**BY_HAND, "original_inference_steps": 3}, 3)
    denoised = 1.0 * 20 / math.sqrt(400.25) + 1.0 * 0.25 / 400.25  # timestep 2, scaled by 10
    assert scheduler.step(one(0.5), 0, one(1.0), one(2.0)) == pytest.approx(0.8 * denoised + 0.6 * 2.0)
    assert scheduler.step(one(0.5), 2, one(1.0)) == pytest.approx(1.0)  # timestep 0 hands its sample back


@settings(deadline=None)
@given(
    name=st.sampled_from(DETERMINISTIC),
    steps=st.integers(1, 60),
    start_fraction=st.floats(0, 1, exclude_max=True),
    spacing=st.sampled_from(["leading", "trailing"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_model_that_knows_the_noise_leads_to_the_clean_sample_from_any_start(
    name, steps, start_fraction, spacing, seed
):
    # DDIM and PNDM go back by whole strides, which meet the next "trailing" timestep only if 1000 divides
    if spacing == "trailing" and 1000 % steps:
        spacing = "leading"
    config = {**STABLE_DIFFUSION, "set_alpha_to_one": True, "timestep_spacing": spacing}
    scheduler = make_scheduler(name, config, steps)
    clean, noise = np.random.default_rng(seed).standard_normal((2, 1, 4, 2, 2)).astype(np.float32)
    start = int(start_fraction * len(scheduler.timesteps))
    sample = scheduler.add_noise(clean, noise, start)
    for index in range(start, len(scheduler.timesteps)):
        sample = scheduler.step(noise, index, sample)
    # float32 rounding of a sample of size 1, seen through 1 / sqrt(a) <= 15
    assert np.abs(sample - clean).max() < 1e-4


@settings(deadline=None)
@given(
    name=st.sampled_from(list(SCHEDULERS)),
    steps=st.integers(1, 50),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
)
def test_timesteps_fall_and_stay_within_the_trained_ones(name, steps, spacing):
    timesteps = make_scheduler(name, {**STABLE_DIFFUSION, "timestep_spacing": spacing}, steps).timesteps
    distinct = np.delete(timesteps, 1) if name == "pndm" and steps > 1 else timesteps
    assert len(distinct) == steps
    assert (np.diff(distinct) < 0).all()
    assert 0 <= timesteps.min() <= timesteps.max() <= 999


@pytest.mark.parametrize("steps", [61, 998])
def test_trailing_spacing_gives_as_many_timesteps_as_asked_where_diffusers_gives_one_more(steps):
    config = {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}
    theirs = reference("ddim", config, steps).timesteps
    assert theirs[-1] == -1  # no timestep at all
    assert DDIM(config, steps).timesteps.tolist() == theirs[:-1].tolist()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_leaves_its_inputs_as_they_were(name):
    scheduler = make_scheduler(name, STABLE_DIFFUSION, 8)
    output, sample, noise = np.random.default_rng(0).standard_normal((3, 1, 4, 2, 2)).astype(np.float32)
    before = [array.copy() for array in (output, sample, noise)]
    for index in range(len(scheduler.timesteps)):
        scheduler.step(output, index, sample, noise)
    assert all(np.array_equal(*pair) for pair in zip(before, (output, sample, noise), strict=True))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_does_not_care_whether_its_arrays_are_reused_after_a_step(name, prediction_type):
    if name == "pndm" and prediction_type == "sample":
        prediction_type = "epsilon"  # it refuses the other
    config = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
    drawn = np.random.default_rng(0).standard_normal((3, 1, 4, 2, 2)).astype(np.float32)

    def run(reuse):
        scheduler = make_scheduler(name, config, 8)
        sample, samples = drawn[0].copy(), []
        for index in range(len(scheduler.timesteps)):
            output = drawn[1] * (index + 1)
            sample, used = scheduler.step(output, index, sample, drawn[2]).copy(), sample
            samples.append(sample.copy())
            if reuse:
                output.fill(7)
                used.fill(7)
        return samples

    assert np.array_equal(run(reuse=True), run(reuse=False))


@pytest.mark.parametrize("scheduler", [LCM(STABLE_DIFFUSION, 4), DDIM(STABLE_DIFFUSION, 4, eta=1.0)])
def test_a_step_that_needs_noise_says_so(scheduler):
    assert scheduler.needs_noise
    with pytest.raises(ValueError, match="needs noise"):
        scheduler.step(one(0.5), 0, one(1.0))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        DDIM(STABLE_DIFFUSION, 4, eta=eta)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("beta_schedule", "sigmoid", '"linear" or "scaled_linear" or "squaredcos_cap_v2", got \'sigmoid\''),
        ("beta_schedule", ["linear"], "got ['linear']"),
        ("num_train_timesteps", -5, "1..100000, got -5"),
        ("num_train_timesteps", 0, "1..100000, got 0"),
        ("num_train_timesteps", 10**9, "1..100000, got 1000000000"),
        ("num_train_timesteps", 1000.0, "whole number"),
        ("num_train_timesteps", True, "got True"),
        ("num_train_timesteps", "1000", "got '1000'"),
        ("beta_start", math.nan, "got nan"),
        ("beta_start", -0.1, "got -0.1"),
        ("beta_end", math.inf, "got inf"),
        ("beta_end", 1.0, "got 1.0"),
        ("beta_end", 10**400, "beta_end must be a number"),
        ("beta_end", None, "got None"),
        ("trained_betas", [0.1, 0.2], "num_train_timesteps = 1000 numbers"),
        ("trained_betas", "0.1", "num_train_timesteps = 1000 numbers"),
        ("trained_betas", [0.1] * 999 + [math.nan], "got nan"),
        ("trained_betas", [0.1] * 999 + ["0.1"], "got '0.1'"),
        ("prediction_type", "flow_prediction", "got 'flow_prediction'"),
        ("timestep_spacing", None, "got None"),
        ("steps_offset", -1, "got -1"),
        ("set_alpha_to_one", "no", "got 'no'"),
        ("rescale_betas_zero_snr", 1, "false or true or null, got 1"),
        ("clip_sample", "yes", "got 'yes'"),
        ("clip_sample_range", 0, "got 0"),
        ("thresholding", True, "false or null, got True"),
    ],
)
def test_a_wrong_config_value_is_refused_by_key_value_and_what_is_allowed(key, value, says):
    with pytest.raises(UserError) as refusal:
        make_scheduler("ddim", {**STABLE_DIFFUSION, key: value}, 4)
    assert f"scheduler config: {key} must be" in str(refusal.value)
    assert says in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pndm", "skip_prk_steps", False),
        ("pndm", "prediction_type", "sample"),
        ("pndm", "rescale_betas_zero_snr", True),
        ("pndm", "clip_sample", True),
        ("euler", "clip_sample", True),
        ("euler", "interpolation_type", "log_linear"),
        ("euler", "timestep_type", "continuous"),
        ("euler", "final_sigmas_type", "sigma_min"),
        ("euler", "use_exponential_sigmas", True),
        ("euler", "use_beta_sigmas", True),
        ("euler", "sigma_max", 80.0),
        ("dpm-solver", "clip_sample", True),
        ("dpm-solver", "algorithm_type", "sde-dpmsolver++"),
        ("dpm-solver", "algorithm_type", "deis"),
        ("dpm-solver", "solver_order", 3),
        ("dpm-solver", "solver_type", "heun"),
        ("dpm-solver", "final_sigmas_type", "sigma_min"),
        ("dpm-solver", "lambda_min_clipped", -5.1),
        ("dpm-solver", "use_lu_lambdas", True),
        ("dpm-solver", "use_flow_sigmas", True),
        ("dpm-solver", "variance_type", "learned_range"),
        ("lcm", "original_inference_steps", 1001),
        ("lcm", "timestep_scaling", 0),
    ],
)
def test_an_option_that_a_scheduler_does_not_follow_is_refused(name, key, value):
    with pytest.raises(UserError, match=f"scheduler config: {key} must be"):
        make_scheduler(name, {**STABLE_DIFFUSION, key: value}, 4)


def test_betas_that_leave_no_signal_are_refused():
    with pytest.raises(UserError, match="of the signal at the last timestep"):
        make_scheduler("ddim", {**STABLE_DIFFUSION, "beta_end": 0.9}, 4)


def test_zero_terminal_snr_of_one_timestep_is_refused():
    config = {"num_train_timesteps": 1, "rescale_betas_zero_snr": True}
    with pytest.raises(UserError, match="num_train_timesteps must be 2 or more"):
        make_scheduler("ddim", config, 1)


@pytest.mark.parametrize("name", ["ddim", "lcm"])
def test_epsilon_prediction_from_pure_noise_is_refused(name):
    config = {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(UserError, match="prediction_type 'epsilon'"):
        make_scheduler(name, config, 4)


@pytest.mark.parametrize(
    ("name", "steps", "says"),
    [
        ("ddim", 0, "1..1000 steps, got 0"),
        ("pndm", -1, "1..1000 steps, got -1"),
        ("euler", 1001, "1..1000 steps, got 1001"),
        ("dpm-solver", 1000, "1..999 steps, got 1000"),
        ("lcm", 51, "1..50 steps, got 51"),
        ("ddim", 1000, "steps_offset 1 reach timestep 1000"),
    ],
)
def test_a_number_of_steps_that_cannot_be_taken_is_refused(name, steps, says):
    with pytest.raises(UserError) as refusal:
        make_scheduler(name, STABLE_DIFFUSION, steps)
    assert says in str(refusal.value)


def test_an_unknown_scheduler_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UserError, match="ddim, dpm-solver, euler, lcm, pndm") as refusal:
        make_scheduler("ddimm", STABLE_DIFFUSION, 4)
    assert refusal.value.hint == "did you mean 'ddim'?"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_default_scheduler_is_the_one_the_model_came_with(name):
    assert default_scheduler({"_class_name": REFERENCES[name].__name__}) == name


@pytest.mark.parametrize("config", [{}, {"_class_name": "HeunDiscreteScheduler"}, {"_class_name": ["x"]}])
def test_the_default_scheduler_is_ddim_for_classes_that_are_not_ours(config):
    assert default_scheduler(config) == "ddim"
