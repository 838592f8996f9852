// Pictures: from a file to pixels that a model takes, and how much two of them differ.

function context(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

// Draws the picture of a file: the longest side at most `longest` (0: any), both multiples of `factor`, at most
// `maxPixels` in all, on white where it is transparent. Returns whether it was resized.
export async function drawFile(canvas, file, { longest, factor, maxPixels }) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`This browser cannot read “${file.name}” as a picture.`);
  }
  const { width, height } = bitmap;
  const wanted = longest > 0 ? longest / Math.max(width, height) : 1;
  const scale = Math.min(1, wanted, Math.sqrt(maxPixels / (width * height)));
  const cut = (side) => Math.floor((side * scale + 1e-6) / factor) * factor;
  if (!cut(width) || !cut(height)) {
    throw new Error(`The picture of ${width}×${height} pixels is too small: each side needs ${factor}.`);
  }
  canvas.width = cut(width);
  canvas.height = cut(height);
  const drawing = context(canvas);
  drawing.fillStyle = "#fff";
  drawing.fillRect(0, 0, canvas.width, canvas.height);
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.width !== width || canvas.height !== height;
}

export function toPng(canvas) {
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Error("The browser could not write the picture.")));
    canvas.toBlob(done, "image/png");
  });
}

// Peak signal-to-noise ratio in decibels of a canvas and a picture file of the same size.
export async function psnr(canvas, blob) {
  const bitmap = await createImageBitmap(blob);
  const other = document.createElement("canvas");
  [other.width, other.height] = [canvas.width, canvas.height];
  context(other).drawImage(bitmap, 0, 0);
  bitmap.close();
  const [a, b] = [canvas, other].map((one) => context(one).getImageData(0, 0, one.width, one.height).data);
  let squares = 0;
  for (let i = 0; i < a.length; i += 4) {
    for (let c = i; c < i + 3; c += 1) squares += (a[c] - b[c]) ** 2;
  }
  return 10 * Math.log10((255 ** 2 * 0.75 * a.length) / squares);
}
