// Diffusion schedulers, each equal to its namesake in runtime/schedulers step by step, where their sources are named.
//
// One is made for one run of `steps` steps. `timesteps` is what the UNet is told at each call; unit noise times
// `initNoiseSigma` is the sample to start from.

import { Problem } from "./errors.mjs";
import { NoiseSchedule, choice, mix, number } from "./noise_schedule.mjs";
import { linspace, mapped, roundHalfEven } from "./numbers.mjs";

class Base {
  initNoiseSigma = 1;
  needsNoise = false;

  scaleModelInput(sample) {
    return sample;
  }
}

export class DDIM extends Base {
  constructor(config, steps) {
    super();
    this.schedule = new NoiseSchedule(config);
    this.timesteps = this.schedule.timesteps(steps).map(roundHalfEven);
    const stride = Math.floor(this.schedule.trainTimesteps / steps);
    this._alphas = this.timesteps.map((t) => this.schedule.alphaAt(t));
    this._nextAlphas = this.timesteps.map((t) => this.schedule.alphaAt(t - stride));
    this.schedule.checkFirst(this._alphas[0]);
  }

  step(output, index, sample) {
    const [clean, noise] = this.schedule.predict(output, sample, this._alphas[index]);
    return mix(clean, noise, this._nextAlphas[index]);
  }
}

// Adams-Bashforth: weights of the last outputs, newest first.
const PNDM_WEIGHTS = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]];

export class PNDM extends Base {
  constructor(config, steps) {
    super();
    choice(config, "prediction_type", ["epsilon", "v_prediction"]);
    choice(config, "skip_prk_steps", [true]);
    choice(config, "rescale_betas_zero_snr", [false, null]);
    choice(config, "clip_sample", [false, null]);
    this.schedule = new NoiseSchedule(config, { set_alpha_to_one: false });
    const visited = this.schedule.timesteps(steps).map(roundHalfEven);
    this.timesteps = [...visited.slice(0, 2), ...visited.slice(1)];
    const stride = Math.floor(this.schedule.trainTimesteps / steps);
    const starts = this.timesteps.map((t, index) => (index === 1 ? t + stride : t));
    this._alphas = starts.map((t) => this.schedule.alphaAt(t));
    this._nextAlphas = starts.map((t) => this.schedule.alphaAt(t - stride));
    this._outputs = [];
  }

  step(output, index, sample) {
    if (index === 1) {
      sample = this._firstSample;
      output = mapped(output, (x, i) => 0.5 * x + 0.5 * this._outputs[0][i]);
    } else {
      if (index === 0) this._firstSample = sample;
      this._outputs = [output, ...this._outputs.slice(0, 3)];
      const weights = PNDM_WEIGHTS[this._outputs.length - 1];
      output = mapped(output, (_, i) =>
        weights.reduce((sum, weight, past) => sum + weight * this._outputs[past][i], 0),
      );
    }
    const [clean, noise] = this.schedule.predict(output, sample, this._alphas[index]);
    return mix(clean, noise, this._nextAlphas[index]);
  }
}

export class Euler extends Base {
  constructor(config, steps) {
    super();
    choice(config, "interpolation_type", ["linear"]);
    choice(config, "timestep_type", ["discrete"]);
    checkSolver(config);
    for (const key of ["sigma_min", "sigma_max"]) choice(config, key, [null]);
    this.schedule = new NoiseSchedule(config, { timestep_spacing: "linspace" });
    const trained = this.schedule.sigmas;
    this.timesteps = this.schedule.timesteps(steps).map(Math.fround);
    let sigmas = this.timesteps.map((t) => interpolated(t, trained));
    if (choice(config, "use_karras_sigmas", [false, null, true])) {
      sigmas = karrasSigmas(sigmas[0], sigmas[sigmas.length - 1], steps);
      this.timesteps = sigmas.map((sigma) => Math.fround(timestepAt(sigma, trained)));
    }
    this._sigmas = [...sigmas, 0];
    this.initNoiseSigma = this.schedule.spacing === "leading" ? Math.sqrt(sigmas[0] ** 2 + 1) : sigmas[0];
  }

  scaleModelInput(sample, index) {
    const scale = Math.sqrt(this._sigmas[index] ** 2 + 1);
    return mapped(sample, (x) => x / scale);
  }

  step(output, index, sample) {
    const alpha = 1 / (this._sigmas[index] ** 2 + 1);
    const [clean, noise] = this.schedule.predict(output, this.scaleModelInput(sample, index), alpha);
    return mapped(clean, (x, i) => x + this._sigmas[index + 1] * noise[i]);
  }
}

export class DPMSolver extends Base {
  constructor(config, steps) {
    super();
    choice(config, "algorithm_type", ["dpmsolver++"]);
    choice(config, "solver_order", [2]);
    choice(config, "solver_type", ["midpoint", "logrho", "bh1", "bh2"]);
    checkSolver(config);
    for (const key of ["use_flow_sigmas", "use_lu_lambdas", "use_dynamic_shifting"]) choice(config, key, [false, null]);
    for (const key of ["variance_type", "lambda_min_clipped"]) choice(config, key, [null]);
    this.schedule = new NoiseSchedule(config, { timestep_spacing: "linspace" });
    const trained = this.schedule.sigmas;
    this.timesteps = this.schedule.timesteps(steps, 1).map(roundHalfEven);
    let sigmas = this.timesteps.map((t) => interpolated(t, trained));
    if (choice(config, "use_karras_sigmas", [false, null, true])) {
      sigmas = karrasSigmas(trained[trained.length - 1], trained[0], steps);
      this.timesteps = sigmas.map((sigma) => roundHalfEven(timestepAt(sigma, trained)));
    }
    this._sigmas = [...sigmas, 0];
    this._alphas = this._sigmas.map((sigma) => 1 / (sigma ** 2 + 1));
  }

  step(output, index, sample) {
    const [alpha, nextAlpha] = this._alphas.slice(index, index + 2);
    const [sigma, nextSigma] = this._sigmas.slice(index, index + 2);
    const [clean, noise] = this.schedule.predict(output, sample, alpha);
    const previous = this._previous;
    this._previous = clean;
    if (previous === undefined || nextSigma === 0) return mix(clean, noise, nextAlpha);
    const ratio = Math.log(this._sigmas[index - 1] / sigma) / Math.log(sigma / nextSigma);
    const kept = Math.sqrt((1 - nextAlpha) / (1 - alpha));
    const added = Math.sqrt(nextAlpha) * (1 - nextSigma / sigma);
    return mapped(sample, (x, i) => kept * x + added * (clean[i] + (0.5 / ratio) * (clean[i] - previous[i])));
  }
}

export class LCM extends Base {
  needsNoise = true;

  constructor(config, steps) {
    super();
    this.schedule = new NoiseSchedule(config, { beta_schedule: "scaled_linear", beta_start: 0.00085, beta_end: 0.012 });
    const trained = this.schedule.trainTimesteps;
    const distilled = number(config, "original_inference_steps", Math.min(50, trained), 1, trained);
    if (!(Number.isInteger(steps) && steps >= 1 && steps <= distilled))
      throw new Problem(`this scheduler takes 1 to ${distilled} steps, not ${steps}`);
    this.timesteps = Array.from(
      { length: steps },
      (_, i) => (distilled - Math.floor((i * distilled) / steps)) * Math.floor(trained / distilled) - 1,
    );
    this._scaling = number(config, "timestep_scaling", 10, 1e-6, 1e6);
    this._alphas = this.timesteps.map((t) => this.schedule.alphaAt(t));
    this.schedule.checkFirst(this._alphas[0]);
  }

  step(output, index, sample, noise) {
    const [clean] = this.schedule.predict(output, sample, this._alphas[index]);
    const timestep = this.timesteps[index] * this._scaling;
    const distance = Math.hypot(timestep, 0.5);
    const denoised = mapped(clean, (x, i) => (0.5 / distance) ** 2 * sample[i] + (timestep / distance) * x);
    return index === this.timesteps.length - 1 ? denoised : mix(denoised, noise, this._alphas[index + 1]);
  }
}

const BY_DIFFUSERS_CLASS = {
  DDIMScheduler: DDIM,
  PNDMScheduler: PNDM,
  EulerDiscreteScheduler: Euler,
  DPMSolverMultistepScheduler: DPMSolver,
  LCMScheduler: LCM,
};

// The scheduler that a model came with; DDIM where it is none of these.
export function makeScheduler(config, steps) {
  const name = String(config._class_name);
  return new (Object.hasOwn(BY_DIFFUSERS_CLASS, name) ? BY_DIFFUSERS_CLASS[name] : DDIM)(config, steps);
}

function checkSolver(config) {
  choice(config, "final_sigmas_type", ["zero"]);
  for (const key of ["use_exponential_sigmas", "use_beta_sigmas", "clip_sample"]) choice(config, key, [false, null]);
}

// The value at a real index, straight lines between those of a list.
function interpolated(index, values) {
  const below = Math.min(Math.max(Math.floor(index), 0), values.length - 1);
  const above = Math.min(below + 1, values.length - 1);
  return values[below] + (index - below) * (values[above] - values[below]);
}

// The real index at which rising values reach one of them, straight lines between their logarithms.
function timestepAt(sigma, trained) {
  const wanted = Math.log(sigma);
  let below = 0;
  while (below < trained.length - 2 && Math.log(trained[below + 1]) <= wanted) below += 1;
  const [low, high] = [Math.log(trained[below]), Math.log(trained[below + 1])];
  return Math.min(Math.max(below + (wanted - low) / (high - low), 0), trained.length - 1);
}

function karrasSigmas(largest, smallest, steps) {
  return linspace(largest ** (1 / 7), smallest ** (1 / 7), steps).map((root) => root ** 7);
}
