// The noise levels that a model was trained with: runtime/schedulers/noise_schedule.py.
//
// Samples are Float32Array, numbers between them are doubles as in Python.

import { Problem } from "./errors.mjs";
import { linspace, mapped, roundHalfEven } from "./numbers.mjs";

const MOST_TIMESTEPS = 100_000;
const ALPHA_OF_PURE_NOISE = 2 ** -24;

export class NoiseSchedule {
  // Reads a scheduler_config.json; `defaults` are what absent keys mean.
  constructor(config, defaults = {}) {
    config = { ...defaults, ...config };
    choice(config, "thresholding", [false, null]);
    this.alphas = alphasCumprod(config);
    this.trainTimesteps = this.alphas.length;
    this.predictionType = choice(config, "prediction_type", ["epsilon", "v_prediction", "sample"]);
    this.spacing = choice(config, "timestep_spacing", ["leading", "trailing", "linspace"]);
    this.stepsOffset = number(config, "steps_offset", 0, 0, MOST_TIMESTEPS);
    this.finalAlpha = choice(config, "set_alpha_to_one", [true, false]) ? 1 : this.alphas[0];
    this.clipRange = choice(config, "clip_sample", [false, null, true])
      ? number(config, "clip_sample_range", 1, 1e-6, 1e6)
      : Infinity;
  }

  // Noise per unit of signal at each trained timestep.
  get sigmas() {
    return Array.from(this.alphas, (alpha) =>
      Math.sqrt((1 - (alpha || ALPHA_OF_PURE_NOISE)) / (alpha || ALPHA_OF_PURE_NOISE)),
    );
  }

  // The timesteps to visit, falling; `extra` more are counted and left out at the clean end.
  timesteps(steps, extra = 0) {
    const trained = this.trainTimesteps;
    const most = this.spacing === "trailing" ? trained : trained - extra;
    if (!(Number.isInteger(steps) && steps >= 1 && steps <= most))
      throw new Problem(`this scheduler takes 1 to ${most} steps, not ${steps}`);
    if (this.spacing === "trailing") {
      const stride = trained - trained / steps - trained; // as numpy.arange rounds it
      return Array.from({ length: steps }, (_, i) => roundHalfEven(trained + i * stride) - 1);
    }
    const count = steps + extra;
    if (this.spacing === "linspace") {
      return linspace(0, trained - 1, count)
        .reverse()
        .slice(0, steps);
    }
    const visited = Array.from(
      { length: steps },
      (_, i) => (count - 1 - i) * Math.floor(trained / count) + this.stepsOffset,
    );
    if (visited[0] >= trained)
      throw new Problem(`${steps} steps reach past the model's last timestep`, "take fewer steps");
    return visited;
  }

  alphaAt(timestep) {
    return timestep < 0 ? this.finalAlpha : this.alphas[timestep];
  }

  // The clean sample and the noise that a model output says a sample is made of.
  predict(output, sample, alpha) {
    const signal = Math.sqrt(alpha);
    const noise = Math.sqrt(1 - alpha);
    const clip = (clean) =>
      this.clipRange === Infinity
        ? clean
        : mapped(clean, (x) => Math.min(Math.max(x, -this.clipRange), this.clipRange));
    if (this.predictionType === "epsilon") {
      return [clip(mapped(sample, (x, i) => x / signal - (noise / signal) * output[i])), output];
    }
    if (this.predictionType === "v_prediction") {
      return [
        clip(mapped(sample, (x, i) => signal * x - noise * output[i])),
        mapped(sample, (x, i) => signal * output[i] + noise * x),
      ];
    }
    return [clip(output), mapped(sample, (x, i) => x / noise - (signal / noise) * output[i])];
  }

  checkFirst(alpha) {
    if (alpha === 0 && this.predictionType === "epsilon") {
      throw new Problem(
        "the first step sees pure noise, of which prediction_type 'epsilon' says nothing",
        "the model's scheduler_config.json is wrong",
      );
    }
  }
}

// The sample at cumulative alpha `alpha` that is made of `clean` and `noise`.
export function mix(clean, noise, alpha) {
  const [a, b] = [Math.sqrt(alpha), Math.sqrt(1 - alpha)];
  return mapped(clean, (x, i) => a * x + b * noise[i]);
}

// The value of a key, one of those allowed; the first of them where it is absent.
export function choice(config, key, allowed) {
  const value = Object.hasOwn(config, key) ? config[key] : allowed[0];
  if (!allowed.includes(value)) throw badValue(key, value);
  return value;
}

export function number(config, key, absent, low, high) {
  const value = Object.hasOwn(config, key) ? config[key] : absent;
  if (typeof value !== "number" || !(value >= low && value <= high)) throw badValue(key, value);
  return value;
}

function badValue(key, value) {
  return new Problem(
    `the page can't use the bundle's scheduler: ${key} is ${String(JSON.stringify(value)).slice(0, 80)}`,
    "take another checkpoint, or zoom with Python",
  );
}

function alphasCumprod(config) {
  let product = 1;
  const alphas = betas(config).map((beta) => {
    product *= Math.fround(1 - Math.fround(beta));
    return Math.fround(product);
  });
  if (!choice(config, "rescale_betas_zero_snr", [false, null, true])) return alphas;
  const signal = alphas.map(Math.sqrt);
  const [first, last] = [signal[0], signal[signal.length - 1]];
  return signal.map((one) => ((one - last) * (first / (first - last))) ** 2);
}

function betas(config) {
  const count = number(config, "num_train_timesteps", 1000, 1, MOST_TIMESTEPS);
  if (!Number.isInteger(count)) throw badValue("num_train_timesteps", count);
  if (config.trained_betas != null) {
    if (!Array.isArray(config.trained_betas) || config.trained_betas.length !== count)
      throw badValue("trained_betas", config.trained_betas);
    return config.trained_betas.map((beta) => number({ beta }, "beta", 0, 1e-6, 0.9999));
  }
  const schedule = choice(config, "beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"]);
  if (schedule === "squaredcos_cap_v2") {
    const kept = linspace(0, 1, count + 1).map((x) => Math.cos((((x + 0.008) / 1.008) * Math.PI) / 2) ** 2);
    return kept.slice(1).map((next, i) => Math.min(1 - next / kept[i], 0.999));
  }
  const start = number(config, "beta_start", 0.0001, 1e-6, 0.9999);
  const end = number(config, "beta_end", 0.02, 1e-6, 0.9999);
  if (schedule === "linear") return linspace(start, end, count);
  return linspace(Math.sqrt(start), Math.sqrt(end), count).map((root) => root ** 2);
}
