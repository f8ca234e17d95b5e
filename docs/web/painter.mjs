// Paints keyframes in a worker, so that the page stays alive. Messages to it:
//   { type: "open", bundle, noise }                        URLs; noise: null, or where starting noise lies (for tests)
//   { type: "paint", number, index, picture, scale, painting }
//   { type: "stop" }                                       leave the keyframe in work
// and from it: loading, opened, step, painted, stopped, problem. `number` tells what was asked from what came before.

import { openBundle } from "./bundle.mjs";
import { Engines } from "./engines.mjs";
import { Problem, explained } from "./errors.mjs";
import { Inpainting } from "./inpainting.mjs";
import { ClipTokenizer } from "./tokenizer.mjs";

class Stopped extends Error {}

let inpainting;
let tokenizer;
let noiseUrl = null;
let wanted = null; // the number of what is to be painted now
let queue = Promise.resolve(); // one thing at a time

const tell = (type, content = {}, transfer = []) => self.postMessage({ type, ...content }, transfer);
const turn = () => new Promise((resolve) => setTimeout(resolve)); // lets a message in

async function open({ bundle: url, noise }) {
  const bundle = await openBundle(new URL(url));
  tokenizer = new ClipTokenizer(await bundle.tokenizerFiles(), bundle.manifest.max_tokens);
  const engines = new Engines(bundle, (component, count, total) => tell("loading", { component, count, total }));
  inpainting = new Inpainting(bundle, tokenizer, engines);
  noiseUrl = noise;
  const { width, height, name, sizeBytes } = bundle;
  tell("opened", { width, height, name, sizeBytes });
}

async function paint({ number, index, picture, scale, painting }) {
  const started = performance.now();
  const onStep = async (step, steps) => {
    tell("step", { number, index, step, steps });
    await turn();
    if (wanted !== number) throw new Stopped();
  };
  const noise = noiseUrl && (await givenNoise(index));
  const painted = await inpainting.keyframeAround(picture, index, scale, painting, noise, onStep);
  const seconds = (performance.now() - started) / 1000;
  const tokens = tokenizer.count(painting.prompt) - (tokenizer.maxTokens - 2);
  const content = { number, index, picture: painted, scale, seconds, cutTokens: Math.max(tokens, 0) };
  tell("painted", content, [painted.data.buffer]);
}

async function givenNoise(index) {
  const answer = await fetch(new URL(`${index}.f32`, noiseUrl));
  if (!answer.ok) throw new Problem(`there is no noise for keyframe ${index}`, "leave 'noise' out of the address");
  return new Float32Array(await answer.arrayBuffer());
}

async function handle(data) {
  const doing = data.type === "open" ? "opening the bundle" : `painting keyframe ${data.index}`;
  try {
    await (data.type === "open" ? open(data) : paint(data));
  } catch (error) {
    if (error instanceof Stopped) {
      tell("stopped", { number: data.number });
      return;
    }
    const { message, hint } = explained(error, doing);
    tell("problem", { number: data.number, message, hint });
  }
}

self.addEventListener("message", ({ data }) => {
  wanted = data.type === "paint" ? data.number : null;
  if (data.type !== "stop") queue = queue.then(() => handle(data));
});
