// A student of kdray in a browser: an image in, the probabilities of its classes out. Nothing leaves the browser.
//
//   import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
//   import { openClassifier } from "./classifier.mjs";
//   const classifier = await openClassifier(ort);
//   const [best] = await classifier.classify(file);  // a Blob, <img>, <canvas> or ImageBitmap
//   console.log(best.name, best.probability);

const BITS = 22; // of the fractions in whole-number arithmetic, as Pillow has it

/** Opens student.onnx and student.json, which lie beside this file. `ort` is onnxruntime-web. */
export async function openClassifier(ort) {
  const [network, about] = await Promise.all(["student.onnx", "student.json"].map(read));
  const { names, shape } = await about.json();
  const session = await ort.InferenceSession.create(new Uint8Array(await network.arrayBuffer()));
  const [channels, height, width] = shape;

  /** Probabilities of uint8 pixels [batch, channels, height, width], Float32Array [batch, classes]. */
  async function probabilities(pixels, batch = 1) {
    const images = new ort.Tensor("uint8", pixels, [batch, ...shape]);
    return (await session.run({ images })).probabilities.data;
  }

  /** Uint8Array [channels, height, width] of an image, made grey and resized as kdray reads images, within one level of 255. */
  async function pixels(image) {
    const { data, columns, rows } = await drawn(image);
    const count = columns * rows;
    const planes = channels === 1 ? [grey(data, count)] : [0, 1, 2].map((c) => data.filter((_, at) => at % 4 === c));
    const found = new Uint8Array(channels * height * width);
    planes.forEach((plane, c) => found.set(resized(plane, columns, rows, width, height), c * height * width));
    return found;
  }

  /** The classes with their probabilities as [{name, probability}], the likeliest first. */
  function ranked(found) {
    return names.map((name, at) => ({ name, probability: found[at] })).sort((a, b) => b.probability - a.probability);
  }

  /** The classes of an image, see `ranked`. */
  async function classify(image) {
    return ranked(await probabilities(await pixels(image)));
  }

  return { names, shape, probabilities, pixels, ranked, classify };
}

async function read(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

/** The RGBA pixels of an image, upright, on white where it is transparent. */
async function drawn(image) {
  const bitmap = await createImageBitmap(image);
  const [columns, rows] = [bitmap.width, bitmap.height];
  const context = new OffscreenCanvas(columns, rows).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, columns, rows);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { data: context.getImageData(0, 0, columns, rows).data, columns, rows };
}

function grey(data, count) {
  const found = new Uint8Array(count);
  for (let at = 0; at < count; at++) {
    found[at] = (data[4 * at] * 19595 + data[4 * at + 1] * 38470 + data[4 * at + 2] * 7471 + 0x8000) >> 16;
  }
  return found;
}

/** A plane [rows, columns] resized to [height, width] by Pillow's bilinear filter, along its rows and then its columns.
    Pillow takes the columns first in some cases, and then rounds otherwise. */
function resized(plane, columns, rows, width, height) {
  const wide = columns === width ? plane : alongRows(plane, columns, rows, width);
  if (rows === height) return wide;
  return turned(alongRows(turned(wide, width, rows), rows, width, height), height, width);
}

function alongRows(plane, columns, rows, width) {
  const found = new Uint8Array(rows * width);
  weights(columns, width).forEach(({ first, factors }, x) => {
    for (let y = 0; y < rows; y++) {
      let sum = 1 << (BITS - 1);
      factors.forEach((factor, at) => (sum += plane[y * columns + first + at] * factor));
      found[y * width + x] = Math.max(0, Math.min(255, sum >> BITS));
    }
  });
  return found;
}

/** For each pixel of `to`, the first of `from` that it takes, and the factors of that and the next. */
function weights(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, x) => {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const raw = Array.from({ length: last - first }, (_, at) =>
      Math.max(0, 1 - Math.abs((first + at - centre + 0.5) * (1 / support))));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, factors: raw.map((one) => Math.trunc(0.5 + (one / sum) * (1 << BITS))) };
  });
}

function turned(plane, columns, rows) {
  const found = new Uint8Array(columns * rows);
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) found[x * rows + y] = plane[y * columns + x];
  return found;
}
