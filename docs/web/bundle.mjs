// A bundle over HTTP. Its manifest comes from outside: it is checked before any other file is asked for, and each file
// is checked by its size and, where the browser can (https, or this machine), by its SHA-256. See runtime/bundle.py.

import { Problem } from "./errors.mjs";

const SCHEMA_VERSION = 3;
const TARGET = "onnxruntime-mobile";
const MOST_MANIFEST_BYTES = 16 * 2 ** 20;
const MOST_TOKENIZER_BYTES = 64 * 2 ** 20;
const MOST_FILE_BYTES = 2 ** 31 - 1;
const MOST_SIDE = 8192;
const REBUILD = `build one with: outzoom export-all --target ${TARGET}`;
const COPY_AGAIN = "copy the bundle again, or build it again";
// What the page gives each component, and takes from it.
const INPUTS = {
  text_encoder: ["input_ids"],
  unet: ["sample", "timestep", "encoder_hidden_states"],
  vae_encoder: ["sample"],
  vae_decoder: ["latent_sample"],
};
export const OUTPUTS = {
  text_encoder: "last_hidden_state",
  unet: "out_sample",
  vae_encoder: "latent_parameters",
  vae_decoder: "sample",
};

export class Bundle {
  constructor(url, manifest) {
    this.url = url;
    this.manifest = manifest;
    [this.width, this.height] = manifest.sizes[0];
    this.cell = manifest.vae_scale_factor;
    this.latentShape = [1, 4, this.height / this.cell, this.width / this.cell];
  }

  get name() {
    return `${this.manifest.source.name}, ${this.manifest.recipe.name}`;
  }

  // Of the engines that the page runs.
  get sizeBytes() {
    const { components, files } = this.manifest;
    return Object.keys(INPUTS).reduce((sum, name) => sum + files[components[name].engine].size_bytes, 0);
  }

  // The bytes of a file that the manifest lists. `onBytes` is told of those that came since the last time.
  async read(name, onBytes = () => {}) {
    const entry = this.manifest.files[name];
    if (entry === undefined) throw new Problem(`the bundle lists no file '${name}'`, REBUILD);
    const data = await fetched(
      new URL(name.split("/").map(encodeURIComponent).join("/"), this.url),
      entry.size_bytes,
      onBytes,
    );
    if (data.length !== entry.size_bytes) {
      throw new Problem(`'${name}' has ${data.length} bytes, the manifest says ${entry.size_bytes}`, COPY_AGAIN);
    }
    if (globalThis.crypto?.subtle !== undefined && hex(await crypto.subtle.digest("SHA-256", data)) !== entry.sha256) {
      throw new Problem(`'${name}' is not what was built: its SHA-256 differs from the manifest's`, COPY_AGAIN);
    }
    return data;
  }

  // The texts of the tokenizer's files, by name.
  async tokenizerFiles() {
    const names = Object.keys(this.manifest.files).filter((name) => name.startsWith("tokenizer/"));
    const sizeBytes = names.reduce((sum, name) => sum + this.manifest.files[name].size_bytes, 0);
    if (sizeBytes > MOST_TOKENIZER_BYTES) throw new Problem(`the tokenizer has ${sizeBytes} bytes`, REBUILD);
    const decoder = new TextDecoder("utf-8", { fatal: true });
    const files = {};
    for (const name of names) files[name.slice("tokenizer/".length)] = decoder.decode(await this.read(name));
    return files;
  }
}

// Opens the bundle whose files lie below a URL.
export async function openBundle(url) {
  if (!url.pathname.endsWith("/")) url = new URL(`${url.pathname}/`, url);
  if (url.origin !== location.origin) {
    throw new Problem(`the bundle '${url}' is on another server`, "put it on the server that the page is on");
  }
  const data = await fetched(new URL("bundle.json", url), MOST_MANIFEST_BYTES);
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data));
  } catch (error) {
    throw new Problem(`the manifest '${url}bundle.json' is damaged: ${error.message}`, COPY_AGAIN);
  }
  check(manifest);
  return new Bundle(url, manifest);
}

function check(manifest) {
  const need = (condition, message, hint = REBUILD) => {
    if (!condition) throw new Problem(`the bundle can't be used: ${message}`, hint);
  };
  need(isObject(manifest), "its manifest is no object");
  need(
    manifest.schema_version === SCHEMA_VERSION,
    `its schema version is ${shown(manifest.schema_version)}, the page reads ${SCHEMA_VERSION}`,
  );
  need(manifest.target === TARGET, `it is for ${shown(manifest.target)}, and the page runs those for ${TARGET}`);
  for (const key of ["source", "recipe", "components", "files", "scheduler"]) {
    need(isObject(manifest[key]), `it has no '${key}'`);
  }
  const cell = manifest.vae_scale_factor;
  need(isWhole(cell, 1, 64), `vae_scale_factor is ${shown(cell)}`);
  const [size] = Array.isArray(manifest.sizes) ? manifest.sizes : [];
  need(
    Array.isArray(size) &&
      size.length === 2 &&
      size.every((side) => isWhole(side, cell, MOST_SIDE) && side % cell === 0),
    `its size is ${shown(size)}`,
  );
  need(
    manifest.latent_scale >= 1e-3 && manifest.latent_scale <= 1e3,
    `latent_scale is ${shown(manifest.latent_scale)}`,
  );
  need(isWhole(manifest.max_tokens, 3, 4096), `max_tokens is ${shown(manifest.max_tokens)}`);
  for (const [name, entry] of Object.entries(manifest.files)) {
    need(isInside(name), `it names a file outside itself: ${shown(name)}`, "do not use this bundle");
    need(isWhole(entry?.size_bytes, 0, MOST_FILE_BYTES), `'${name}' has ${shown(entry?.size_bytes)} bytes`);
    need(/^[0-9a-f]{64}$/.test(entry.sha256), `'${name}' has no SHA-256`);
  }
  for (const [name, wanted] of Object.entries(INPUTS)) checkComponent(manifest, name, wanted, need);
}

function checkComponent(manifest, name, wanted, need) {
  const component = manifest.components[name];
  need(isObject(component) && Array.isArray(component.inputs) && Array.isArray(component.outputs), `it has no ${name}`);
  need(Object.hasOwn(manifest.files, component.engine), `the engine of ${name} is not a listed file`);
  need(
    component.engine.endsWith(".ort"),
    `the engine of ${name} is no .ort file`,
    "leave out --segments when it is built",
  );
  const inputs = component.inputs.map((spec) => spec?.name);
  need(
    inputs.length === wanted.length && wanted.every((input) => inputs.includes(input)),
    `${name} takes ${inputs.join(", ")}; the page gives it ${wanted.join(", ")}`,
    "leave out --hoist when it is built, and take a model whose guidance is not an input",
  );
  need(
    component.outputs.some((spec) => spec?.name === OUTPUTS[name]),
    `${name} makes no '${OUTPUTS[name]}'`,
  );
}

// The body of an answer, at most `most` bytes of it.
async function fetched(url, most, onBytes = () => {}) {
  let answer;
  try {
    answer = await fetch(url);
  } catch (error) {
    throw new Problem(`'${url}' can't be fetched: ${error.message}`, "is the server there?");
  }
  if (!answer.ok) {
    throw new Problem(
      `there is no '${url.pathname}': the server answers ${answer.status}`,
      `put a bundle beside the page as 'bundle', or name its folder: ?bundle=FOLDER; ${REBUILD}`,
    );
  }
  const data = new Uint8Array(most);
  let count = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return data.subarray(0, count);
    if (count + value.length > most) {
      await reader.cancel();
      throw new Problem(`'${url.pathname}' has more than ${most} bytes`, COPY_AGAIN);
    }
    data.set(value, count);
    count += value.length;
    onBytes(value.length);
  }
}

function isInside(name) {
  return (
    name !== "" &&
    !/[\\:\0]/.test(name) &&
    name.split("/").every((part) => part !== "" && part !== "." && part !== "..")
  );
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isWhole = (value, low, high) => Number.isInteger(value) && value >= low && value <= high;
const shown = (value) => String(JSON.stringify(value)).slice(0, 80);
const hex = (buffer) => Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
