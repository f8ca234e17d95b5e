// Stable Diffusion inpainting, and keyframes of the zoom-out: runtime/inpainting.py and runtime/zoom.py.

import { outsideMask, pasteCentered } from "./geometry.mjs";
import { mapped, roundHalfEven, standardNormal } from "./numbers.mjs";
import { makeScheduler } from "./schedulers.mjs";

const FEATHER_FRACTION = 1 / 24; // of the picture's shorter side

export class Inpainting {
  // `engines.run(component, feeds)` gives the first output of a component, a Float32Array.
  constructor(bundle, tokenizer, engines) {
    this.bundle = bundle;
    this._tokenizer = tokenizer;
    this._engines = engines;
    this._scale = Math.fround(bundle.manifest.latent_scale);
    this._contexts = new Map();
  }

  // The keyframe number `index`, that shows `picture`, the one before it, shrunk by `scale` in its centre.
  async keyframeAround(picture, index, scale, painting, noise, onStep) {
    const { width, height } = this.bundle;
    const empty = { width, height, data: new Uint8Array(width * height * 3) };
    const mask = outsideMask(width, height, scale);
    const painted = await this._paint(pasteCentered(empty, picture, scale), mask, index, painting, noise, onStep);
    return pasteCentered(painted, picture, scale, Math.min(width, height) * FEATHER_FRACTION);
  }

  // `noise` is what the painting starts from, by default drawn from the seed and `index`. `onStep` is awaited.
  async _paint(picture, mask, index, painting, noise, onStep) {
    const { latentShape, manifest } = this.bundle;
    const count = latentShape.reduce((product, side) => product * side, 1);
    const scheduler = makeScheduler(manifest.scheduler, painting.steps);
    const known = await this._encode(levels(picture, mask), count);
    const cells = latentMask(mask, this.bundle);
    const texts = [await this._context(painting.prompt)];
    if (painting.guidance > 1) texts.push(await this._context(painting.negativePrompt));
    await this._engines.close("text_encoder");
    noise ??= standardNormal(count, painting.seed, index);
    let latents = mapped(noise, (x) => x * scheduler.initNoiseSigma);
    for (const [call, timestep] of scheduler.timesteps.entries()) {
      const sample = joined(scheduler.scaleModelInput(latents, call), cells, known);
      const output = await this._predict(sample, timestep, texts, painting.guidance);
      const fresh = scheduler.needsNoise ? standardNormal(count, painting.seed, index, 1 + call) : null;
      latents = scheduler.step(output, call, latents, fresh);
      await onStep(call + 1, scheduler.timesteps.length);
    }
    return this._decode(latents);
  }

  // The prompt's prediction, guided away from that of what not to paint, if there is one.
  async _predict(sample, timestep, texts, guidance) {
    const { latentShape } = this.bundle;
    const predictions = [];
    for (const text of texts) {
      predictions.push(
        await this._engines.run("unet", {
          sample: { data: sample, shape: [1, 9, ...latentShape.slice(2)] },
          timestep: { data: [timestep], shape: [1] },
          encoder_hidden_states: text,
        }),
      );
    }
    const [conditional, unconditional] = predictions;
    if (unconditional === undefined) return conditional;
    return mapped(conditional, (x, i) => unconditional[i] + guidance * (x - unconditional[i]));
  }

  async _context(prompt) {
    if (!this._contexts.has(prompt)) {
      const ids = this._tokenizer.encode(prompt);
      const data = await this._engines.run("text_encoder", { input_ids: { data: ids, shape: [1, ids.length] } });
      this._contexts.set(prompt, { data, shape: [1, ids.length, data.length / ids.length] });
      if (this._contexts.size > 4) this._contexts.delete(this._contexts.keys().next().value);
    }
    return this._contexts.get(prompt);
  }

  // Scaled latents of an image: the mean of their distribution, which is the first half of the output.
  async _encode(image, count) {
    const { width, height } = this.bundle;
    const parameters = await this._engines.run("vae_encoder", {
      sample: { data: image, shape: [1, 3, height, width] },
    });
    return mapped(parameters.subarray(0, count), (x) => x * this._scale);
  }

  async _decode(latents) {
    const { width, height, latentShape } = this.bundle;
    const unscaled = mapped(latents, (x) => x / this._scale);
    const image = await this._engines.run("vae_decoder", { latent_sample: { data: unscaled, shape: latentShape } });
    const data = new Uint8Array(width * height * 3);
    for (let i = 0; i < data.length; i++) {
      const level = Math.fround(image[(i % 3) * width * height + Math.floor(i / 3)] / 2 + 0.5);
      data[i] = roundHalfEven(Math.fround(Math.min(Math.max(level, 0), 1) * 255));
    }
    return { width, height, data };
  }
}

// The colours of a picture, -1 to 1, channel by channel; 0 where they are to be painted.
function levels({ width, height, data }, mask) {
  const area = width * height;
  return mapped(new Float32Array(3 * area), (_, i) =>
    mask[i % area] ? 0 : Math.fround(data[3 * (i % area) + Math.floor(i / area)] / 127.5) - 1,
  );
}

// 1 where any pixel of a latent cell is to be painted.
function latentMask(mask, { width, height, cell }) {
  const columns = width / cell;
  const cells = new Float32Array(columns * (height / cell));
  for (let i = 0; i < mask.length; i++) {
    if (mask[i]) cells[Math.floor(i / width / cell) * columns + Math.floor((i % width) / cell)] = 1;
  }
  return cells;
}

function joined(...arrays) {
  const made = new Float32Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let position = 0;
  for (const array of arrays) {
    made.set(array, position);
    position += array.length;
  }
  return made;
}
