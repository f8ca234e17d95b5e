// Puts beside the page what it needs and git does not have: ONNX Runtime's WebAssembly build, and a picture to begin
// with. Run it with 'npm run vendor' after 'npm ci'.

import { copyFile, mkdir } from "node:fs/promises";

const RUNTIME = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
const here = (path) => new URL(path, import.meta.url);

await mkdir(here("vendor/"), { recursive: true });
for (const name of RUNTIME) await copyFile(here(`node_modules/onnxruntime-web/dist/${name}`), here(`vendor/${name}`));
try {
  await copyFile(here("../../models/demo/picture.png"), here("vendor/picture.png"));
} catch (error) {
  if (error.code !== "ENOENT") throw error; // without one, the page asks for a picture
}
