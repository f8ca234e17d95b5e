// Where a shrunk picture lies, what is left to paint, and pasting: runtime/geometry.py, to the same bytes.
//
// A picture is { width, height, data }, data of width * height * 3 bytes, RGB. Resampling is Pillow's (bicubic, in
// fixed point, a horizontal pass and then a vertical one; src/libImaging/Resample.c), as is blending (Paste.c).

import { roundHalfEven } from "./numbers.mjs";

export const MIN_SCALE = 0.25;
export const MAX_SCALE = 0.97;
const TOLERANCE_PX = 1e-6;
const PRECISION_BITS = 32 - 8 - 2;

// The pixels from the first to before the second that lie wholly inside the centred fraction `scale`.
export function span(length, scale, insetPx = 0) {
  const start = Math.ceil((length * (1 - scale)) / 2 + insetPx - TOLERANCE_PX);
  const half = Math.floor(length / 2);
  return 2 * start < length ? [start, length - start] : [half, half];
}

// 1 where a picture shrunk by `scale` into the centre does not cover a pixel fully, height * width of them.
export function outsideMask(width, height, scale) {
  const mask = new Uint8Array(width * height).fill(1);
  const [left, right] = span(width, scale);
  const [top, bottom] = span(height, scale);
  for (let y = top; y < bottom; y++) mask.fill(0, y * width + left, y * width + right);
  return mask;
}

// A copy of `canvas` with `picture` in its centre, fading in over `featherPx` from its edge.
export function pasteCentered(canvas, picture, scale, featherPx = 0) {
  const { width, height } = canvas;
  const data = canvas.data.slice();
  const [left, right] = span(width, scale);
  const [top, bottom] = span(height, scale);
  if (left === right || top === bottom) return { width, height, data };
  const patch = resampled(picture, width, height, scale, left, top, right, bottom);
  const across = alphas(width, scale, featherPx);
  const down = alphas(height, scale, featherPx);
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const alpha = Math.min(across[x - left], down[y - top]);
      const from = 3 * ((y - top) * (right - left) + x - left);
      const to = 3 * (y * width + x);
      for (let c = 0; c < 3; c++) {
        const sum = data[to + c] * (255 - alpha) + patch[from + c] * alpha + 128;
        data[to + c] = ((sum >> 8) + sum) >> 8;
      }
    }
  }
  return { width, height, data };
}

function alphas(length, scale, featherPx) {
  const [start, stop] = span(length, scale);
  return Uint8Array.from({ length: stop - start }, (_, i) => {
    if (featherPx <= 0.5) return 255;
    const distancePx = (length * scale) / 2 - Math.abs(start + i + 0.5 - length / 2);
    return roundHalfEven(255 * Math.min(Math.max(distancePx / featherPx, 0), 1));
  });
}

// The pixels of a region of a frame with `picture` in its centre, `scale` times as large.
function resampled(picture, width, height, scale, left, top, right, bottom) {
  const source = (position, frame, length) => {
    const edge = (frame * (1 - scale)) / 2;
    return Math.fround(Math.min(Math.max(((position - edge) / (frame * scale)) * length, 0), length));
  };
  const columns = coefficients(
    picture.width,
    source(left, width, picture.width),
    source(right, width, picture.width),
    right - left,
  );
  const rows = coefficients(
    picture.height,
    source(top, height, picture.height),
    source(bottom, height, picture.height),
    bottom - top,
  );
  const wide = pass(picture.data, picture.height, picture.width * 3, 3, columns, (right - left) * 3, 3);
  return pass(wide, right - left, 3, (right - left) * 3, rows, 3, (right - left) * 3);
}

// For each output pixel along an axis: the first input pixel that counts, and the weights from there on.
function coefficients(length, begin, end, count) {
  const scale = Math.fround(end - begin) / count;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  return Array.from({ length: count }, (_, i) => {
    const center = begin + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const stop = Math.min(Math.trunc(center + support + 0.5), length);
    const weights = Array.from({ length: stop - first }, (_, x) => bicubic((x + first - center + 0.5) / filterScale));
    const sum = weights.reduce((a, b) => a + b, 0);
    return {
      first,
      weights: weights.map((weight) =>
        Math.trunc((weight / sum) * 2 ** PRECISION_BITS + (weight / sum < 0 ? -0.5 : 0.5)),
      ),
    };
  });
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Resamples `lines` lines, `lineStride` apart, whose pixels are `stride` apart, along themselves.
function pass(data, lines, lineStride, stride, outputs, outLineStride, outStride) {
  const made = new Uint8ClampedArray(lines * outputs.length * 3);
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < outputs.length; i++) {
      const { first, weights } = outputs[i];
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** (PRECISION_BITS - 1);
        let at = line * lineStride + first * stride + c;
        for (const weight of weights) {
          sum += data[at] * weight;
          at += stride;
        }
        made[line * outLineStride + i * outStride + c] = Math.floor(sum / 2 ** PRECISION_BITS);
      }
    }
  }
  return made;
}
