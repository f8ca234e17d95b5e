// The engines of a bundle in ONNX Runtime's WebAssembly build, opened when they are first needed.

import { OUTPUTS } from "./bundle.mjs";
import { Problem, explained } from "./errors.mjs";
import * as ort from "./vendor/ort.wasm.min.mjs";

const MOST_THREADS = 8;
const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array };

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
// threads share memory, which browsers allow on isolated pages only: see docs/mobile.md
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;

export class Engines {
  // `onBytes` is told of a component, and of how many bytes came of how many.
  constructor(bundle, onBytes) {
    this._bundle = bundle;
    this._onBytes = onBytes;
    this._open = new Map();
  }

  // What a component makes (see bundle.mjs), from arrays of numbers by the names of its inputs.
  async run(component, feeds) {
    const output = OUTPUTS[component];
    const { inputs } = this._bundle.manifest.components[component];
    const session = await this._session(component);
    const tensors = {};
    for (const spec of inputs) tensors[spec.name] = this._tensor(component, spec, feeds[spec.name]);
    try {
      const { data } = (await session.run(tensors, [output]))[output];
      if (!(data instanceof Float32Array)) throw new Problem(`${component} gives no float32`, "build the bundle again");
      return data;
    } catch (error) {
      throw explained(error, `running ${component}`);
    }
  }

  // Gives an engine's memory back; it is opened again when it is needed.
  async close(component) {
    const session = this._open.get(component);
    this._open.delete(component);
    await session?.release();
  }

  _tensor(component, spec, { data, shape }) {
    const type = ARRAYS[spec.dtype];
    if (type === undefined)
      throw new Problem(`${component} takes '${spec.name}' in ${spec.dtype}`, "build the bundle again");
    return new ort.Tensor(spec.dtype, type === BigInt64Array ? type.from(data, BigInt) : type.from(data), shape);
  }

  async _session(component) {
    if (!this._open.has(component)) {
      const { engine } = this._bundle.manifest.components[component];
      const total = this._bundle.manifest.files[engine].size_bytes;
      let count = 0;
      try {
        const data = await this._bundle.read(engine, (bytes) => this._onBytes(component, (count += bytes), total));
        const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
        this._open.set(component, await ort.InferenceSession.create(data, options));
      } catch (error) {
        throw explained(error, `opening ${component} (${(total / 1e6).toFixed(0)} MB)`);
      }
    }
    return this._open.get(component);
  }
}
