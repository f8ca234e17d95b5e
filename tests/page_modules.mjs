// Calls the page's modules in Node for tests/test_page_modules.py: a JSON request on stdin, a JSON answer on stdout.

import { outsideMask, pasteCentered } from "../docs/web/geometry.mjs";
import { standardNormal } from "../docs/web/numbers.mjs";
import { makeScheduler } from "../docs/web/schedulers.mjs";
import { ClipTokenizer } from "../docs/web/tokenizer.mjs";

const CALLS = {
  tokenize: ({ files, maxTokens, prompts }) => {
    const tokenizer = new ClipTokenizer(files, maxTokens);
    return prompts.map((prompt) => ({ ids: tokenizer.encode(prompt), count: tokenizer.count(prompt) }));
  },
  schedule: ({ config, steps, start, outputs, noises }) => {
    const scheduler = makeScheduler(config, steps);
    const samples = [Float32Array.from(start, (x) => x * scheduler.initNoiseSigma)];
    const inputs = [];
    for (const [call] of scheduler.timesteps.entries()) {
      const sample = samples[call];
      inputs.push(scheduler.scaleModelInput(sample, call));
      samples.push(scheduler.step(Float32Array.from(outputs[call]), call, sample, Float32Array.from(noises[call])));
    }
    return { timesteps: scheduler.timesteps, samples: samples.map((x) => [...x]), inputs: inputs.map((x) => [...x]) };
  },
  paste: ({ canvas, picture, scale, featherPx }) => {
    const bytes = ({ data, ...size }) => ({ ...size, data: Uint8Array.from(data) });
    const mask = outsideMask(canvas.width, canvas.height, scale);
    return { data: [...pasteCentered(bytes(canvas), bytes(picture), scale, featherPx).data], mask: [...mask] };
  },
  noise: ({ count, numbers }) => numbers.map((each) => [...standardNormal(count, ...each)]),
};

let text = "";
for await (const part of process.stdin) text += part;
const { call, ...request } = JSON.parse(text);
try {
  console.log(JSON.stringify({ made: CALLS[call](request) }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message, hint: error.hint ?? "" }));
}
