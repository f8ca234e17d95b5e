// The page: what a person sees and does. Painting is in a worker (painter.mjs), showing in camera.mjs.
//
// Its address takes ?bundle=FOLDER, by default the folder 'bundle' beside the page, and ?noise=FOLDER: files 1.f32,
// 2.f32, ... of the starting noise of each keyframe, by which a test paints what Python paints. Each keyframe is also
// an event 'keyframe' of the document, its detail { index, width, height, data }.

import { Camera } from "./camera.mjs";
import { explained, Problem } from "./errors.mjs";

const ZOOM_RATE = 2; // per second, at most
const LOOKAHEAD = 2; // keyframes painted beyond the one that the camera moves to
const OWN_PICTURE = "vendor/picture.png";

const byId = (id) => document.getElementById(id);
const state = {
  worker: null,
  bundle: null, // what the worker says of it
  picture: null, // the first keyframe
  latest: null, // the last keyframe, and the index that it has
  index: 0,
  running: false,
  settings: null, // how the next keyframe is painted
  number: 0, // of what was asked of the worker last
  painting: false,
  waiting: 0, // a timer
};
let camera;

function say(text, bad = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("bad", bad);
}

function fail(problem) {
  stop();
  say(problem.hint ? `${problem.message}: ${problem.hint}` : problem.message, true);
}

function doing(text, done, of) {
  byId("doing").textContent = text;
  byId("progress").value = done;
  byId("progress").max = of;
}

function showPainted() {
  const { index } = state;
  doing(index === 0 ? "Nothing is painted yet" : `Keyframe ${index} is painted`, Math.min(index, 1), 1);
}

// What the fields say; what they said last, while one of them is being changed to something that does not go.
function settings() {
  if (!byId("steer").checkValidity()) return state.settings;
  state.settings = {
    scale: 1 / Number(byId("widening").value),
    painting: {
      prompt: byId("prompt").value,
      negativePrompt: byId("negative").value,
      steps: Number(byId("steps").value),
      guidance: Number(byId("guidance").value),
      seed: Number(byId("seed").value),
    },
  };
  return state.settings;
}

function showButtons() {
  byId("toggle").textContent = state.running ? "Stop" : "Start";
  byId("toggle").disabled = state.bundle === null || state.picture === null;
  byId("again").disabled = byId("toggle").disabled || state.index === 0;
}

function start() {
  if (!byId("steer").reportValidity()) return;
  state.running = true;
  say("zooming out");
  showButtons();
  paintNext();
}

function stop() {
  if (state.running) say("stopped");
  state.running = false;
  if (state.painting) state.worker.postMessage({ type: "stop" });
  clearTimeout(state.waiting);
  showButtons();
}

// Forgets what was painted: the zoom begins with the picture.
function restart() {
  const running = state.running;
  const { worker } = state;
  if (state.painting) worker.postMessage({ type: "stop" });
  clearTimeout(state.waiting);
  state.painting = false;
  state.number += 1; // whatever comes of what was asked before is left out
  [state.latest, state.index] = [state.picture, 0];
  camera.restart(state.picture.width, state.picture.height);
  camera.add(state.picture, 1, null);
  byId("painted").textContent = "0";
  showPainted();
  showButtons();
  if (running) paintNext();
}

function paintNext() {
  clearTimeout(state.waiting);
  if (!state.running || state.painting) return;
  if (camera.ahead >= 1 + LOOKAHEAD) {
    state.waiting = setTimeout(paintNext, 100);
    return;
  }
  state.painting = true;
  state.number += 1;
  const { number, index, latest: picture } = state;
  state.worker.postMessage({ type: "paint", number, index: index + 1, picture, ...settings() });
}

function keyframe({ index, picture, scale, seconds, cutTokens }) {
  [state.latest, state.index] = [picture, index];
  state.painting = false;
  camera.add(picture, scale, seconds);
  document.dispatchEvent(new CustomEvent("keyframe", { detail: { index, ...picture } }));
  byId("view").setAttribute(
    "aria-label",
    `The zoom-out, ${index} keyframes wide, painted from: ${byId("prompt").value}`,
  );
  byId("painted").textContent = String(index);
  byId("took").textContent = `${seconds.toFixed(1)} s`;
  showPainted();
  if (cutTokens > 0) say(`the prompt is too long: its last ${cutTokens} tokens are left out`);
  showButtons();
  paintNext();
}

const ANSWERS = {
  loading: ({ component, count, total }) =>
    doing(
      `Loading ${component.replace("_", " ")}: ${(count / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`,
      count,
      total,
    ),
  opened: (bundle) => {
    state.bundle = bundle;
    byId("model").textContent =
      `${bundle.name}; ${bundle.width}x${bundle.height}, ${(bundle.sizeBytes / 1e6).toFixed(1)} MB`;
    byId("view").style.aspectRatio = `${bundle.width} / ${bundle.height}`;
    takeFirstPicture();
  },
  step: ({ index, step, steps }) => doing(`Keyframe ${index}: step ${step} of ${steps}`, step, steps),
  painted: keyframe,
  stopped: () => {
    state.painting = false;
    showPainted();
    paintNext(); // it may have been started again meanwhile
  },
  problem: (problem) => {
    state.painting = false;
    fail(problem);
  },
};

async function takeFirstPicture() {
  try {
    const [chosen] = byId("picture").files;
    if (chosen !== undefined) return await take(chosen);
    const answer = await fetch(OWN_PICTURE);
    if (!answer.ok) throw new Error();
    return await take(await answer.blob());
  } catch {
    return say("choose a picture");
  }
}

// Cuts a picture to the bundle's shape, out of its middle, and scales it.
async function take(file) {
  const { width, height } = state.bundle;
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    throw new Problem(`'${file.name ?? OWN_PICTURE}' is no picture that this browser can read`, "take a PNG or JPEG");
  }
  const fraction = Math.min(image.width / width, image.height / height);
  const [cutWidth, cutHeight] = [width * fraction, height * fraction];
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(
    image,
    (image.width - cutWidth) / 2,
    (image.height - cutHeight) / 2,
    cutWidth,
    cutHeight,
    0,
    0,
    width,
    height,
  );
  image.close();
  const { data } = context.getImageData(0, 0, width, height);
  state.picture = {
    width,
    height,
    data: Uint8Array.from({ length: width * height * 3 }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)]),
  };
  if (!state.running) say("ready");
  restart();
}

function open() {
  const folder = (name, otherwise) => {
    const given = new URLSearchParams(location.search).get(name) ?? otherwise;
    return given && new URL(given.endsWith("/") ? given : `${given}/`, location.href).href;
  };
  state.worker = new Worker("painter.mjs", { type: "module" });
  state.worker.addEventListener("error", (event) => {
    const missing = "is ONNX Runtime beside the page? 'npm run vendor' in docs/web puts it there";
    fail(new Problem(`the painter can't start: ${event.message || "a file of it can't be loaded"}`, missing));
  });
  state.worker.addEventListener("message", ({ data }) => {
    if (data.number === undefined || data.number === state.number) ANSWERS[data.type](data);
  });
  state.worker.postMessage({ type: "open", bundle: folder("bundle", "bundle"), noise: folder("noise", null) });
}

function main() {
  if (typeof WebAssembly !== "object") {
    throw new Problem(
      "this browser has no WebAssembly, or it is switched off",
      "take a current one; some switch it off in a mode for safety",
    );
  }
  say("opening the bundle");
  camera = new Camera(byId("view"), ZOOM_RATE);
  byId("toggle").addEventListener("click", () => (state.running ? stop() : start()));
  byId("steer").addEventListener("submit", (event) => event.preventDefault());
  byId("steer").addEventListener("keydown", ({ key, target }) => {
    const starts = key === "Enter" && target.matches("input:not([type=file])") && !byId("toggle").disabled;
    if (starts && !state.running) start();
  });
  const show = ({ target }) => (target.closest("details") ?? target).setAttribute("open", "");
  byId("steer").addEventListener("invalid", show, true); // a field that is folded away can't say what is wrong
  byId("again").addEventListener("click", restart);
  byId("picture").addEventListener("change", async ({ target }) => {
    if (target.files.length === 0 || state.bundle === null) return;
    try {
      await take(target.files[0]);
    } catch (error) {
      fail(explained(error, "reading the picture"));
    }
  });
  open();
}

try {
  main();
} catch (error) {
  fail(explained(error, "starting"));
}
