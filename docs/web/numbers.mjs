// What NumPy does, in JavaScript.

// To the nearest whole number, halves to the even one.
export function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

export function linspace(begin, end, count) {
  const step = count > 1 ? (end - begin) / (count - 1) : 0;
  return Array.from({ length: count }, (_, i) => (i === count - 1 && i > 0 ? end : begin + i * step));
}

// A Float32Array of what `change` makes of each element and its index.
export function mapped(array, change) {
  const made = new Float32Array(array.length);
  for (let i = 0; i < made.length; i++) made[i] = change(array[i], i);
  return made;
}

// Unit noise from whole numbers that tell it apart. Not NumPy's, so a seed paints something else than in Python.
// Source: sfc32 of Chris Doty-Humphrey's PractRand; Box and Muller 1958.
export function standardNormal(count, ...numbers) {
  let [a, b, c, d] = [0x9e3779b9, 0x243f6a88, 0xb7e15162, 1];
  const next = () => {
    const sum = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return sum >>> 0;
  };
  for (const number of numbers) {
    a ^= number | 0;
    b ^= Math.floor(number / 2 ** 32) | 0;
    for (let i = 0; i < 20; i++) next();
  }
  return mapped(new Float32Array(count), () => {
    const radius = Math.sqrt(-2 * Math.log((next() + 1) / 2 ** 32));
    return radius * Math.cos((2 * Math.PI * next()) / 2 ** 32);
  });
}
