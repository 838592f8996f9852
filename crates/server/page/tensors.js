// Safetensors files: eight bytes of length, a JSON header, the bytes of the tensors.

const DTYPES = { F16: "float16", BF16: "bfloat16", F32: "float32", U8: "uint8" };
const NAMES = ["latents", "latent", "latent_tensor", "samples"];
const LENGTH_BYTES = 8;
const MAX_HEADER = 100_000_000;

// The latents in a file, which is an ArrayBuffer: `{name, dtype, shape, offset, bytes}`.
export function readLatents(file) {
  const header = readHeader(file);
  const tensors = Object.entries(header).filter(([name]) => name !== "__metadata__");
  const fits = ([, tensor]) => tensor.shape?.length >= 3 && tensor.shape.length <= 5;
  const known = NAMES.map((name) => tensors.find(([found]) => found === name)).find(Boolean);
  const [name, tensor] = known ?? tensors.find(fits) ?? [];
  if (!tensor) throw new Error("The file holds no tensor of three to five dimensions.");
  const dtype = DTYPES[tensor.dtype];
  if (!dtype) {
    const expected = Object.keys(DTYPES).join(", ");
    throw new Error(`The tensor “${name}” is of type ${tensor.dtype}; expected one of ${expected}.`);
  }
  const start = LENGTH_BYTES + headerLength(file);
  const [begin, end] = tensor.data_offsets;
  if (!(begin <= end && start + end <= file.byteLength)) throw new Error("The file is cut short.");
  return { name, dtype, shape: tensor.shape, offset: start + begin, bytes: new Uint8Array(file, start + begin, end - begin) };
}

function headerLength(file) {
  return Number(new DataView(file).getBigUint64(0, true));
}

function readHeader(file) {
  const problem = "This is no safetensors file.";
  if (file.byteLength < LENGTH_BYTES) throw new Error(problem);
  const length = headerLength(file);
  if (length > MAX_HEADER || LENGTH_BYTES + length > file.byteLength) throw new Error(problem);
  try {
    return JSON.parse(new TextDecoder().decode(new Uint8Array(file, LENGTH_BYTES, length)));
  } catch {
    throw new Error(problem);
  }
}

// A file with one tensor, as a Blob.
export function writeLatents({ dtype, shape, bytes }) {
  const type = Object.keys(DTYPES).find((name) => DTYPES[name] === dtype);
  const header = JSON.stringify({ latents: { dtype: type, shape, data_offsets: [0, bytes.length] } });
  const text = new TextEncoder().encode(header.padEnd(Math.ceil(header.length / 8) * 8));
  const length = new DataView(new ArrayBuffer(LENGTH_BYTES));
  length.setBigUint64(0, BigInt(text.length), true);
  return new Blob([length, text, bytes], { type: "application/octet-stream" });
}
