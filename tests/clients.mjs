// Runs .ort files in a build of ONNX Runtime, in Node or in a browser, for tests/test_web.py.

const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

// What each engine of a request makes of its inputs, by component and output: lists of numbers.
export async function runAll(ort, request, read) {
  const made = {};
  for (const { component, engine, inputs } of request) {
    const session = await ort.InferenceSession.create(await read(engine));
    const feeds = {};
    for (const { name, dtype, shape, file } of inputs) {
      const bytes = await read(file);
      feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](bytes.slice().buffer), shape);
    }
    const outputs = await session.run(feeds);
    made[component] = Object.fromEntries(
      Object.entries(outputs).map(([name, tensor]) => [name, Array.from(tensor.data)]),
    );
    await session.release();
  }
  return made;
}

// In Node: node clients.mjs NODE_MODULES FOLDER, which has request.json and the inputs; made.json is written into it.
if (typeof process !== "undefined" && process.argv[1]?.endsWith("clients.mjs")) {
  const { readFile, writeFile } = await import("node:fs/promises");
  const { createRequire } = await import("node:module");
  const { join } = await import("node:path");
  const [modules, folder] = process.argv.slice(2);
  const ort = createRequire(join(modules, "x.js"))("onnxruntime-node");
  const read = async (name) => new Uint8Array(await readFile(join(folder, name)));
  const request = JSON.parse(await readFile(join(folder, "request.json"), "utf-8"));
  await writeFile(join(folder, "made.json"), JSON.stringify(await runAll(ort, request, read)));
}
