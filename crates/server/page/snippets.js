// What was just done, as lines to paste: Python and a shell with curl.

import { server } from "./server.js";

const python = JSON.stringify;
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const KEY_HEADER = "-H \"Authorization: Bearer $REMOTE_VAE_API_KEY\"";

// The endpoint of a model as Python's functions want it.
function endpoint(model, precision) {
  const url = server.address(model, "", { precision });
  url.pathname = url.pathname.replace(/(.)\/$/, "$1");
  return url.href;
}

// Keyword arguments that say how the latents are scaled. `remote_encode` cannot say “by the model's own factors”, so they
// are written out; without any it gives the autoencoder's own latents.
function factors({ kind, scaling_factor: scale, shift_factor: shift, family }) {
  if (kind === "scalar") return `, scaling_factor=${scale}${shift ? `, shift_factor=${shift}` : ""}`;
  if (kind === "identity") return `, scaling_factor=${family?.scaling_factor ?? "1.0"}`;
  return "";
}

// diffusers' functions have no keys; those of this project's package do.
function imports(names, key) {
  if (!key) return `from diffusers.utils.remote_utils import ${names}`;
  return `import os\nfrom remote_vae import ${names}`;
}

const keyArgument = (key) => (key ? ", api_key=os.environ[\"REMOTE_VAE_API_KEY\"]" : "");

function tensorQuery({ shape, dtype }) {
  return { shape, dtype, output_type: "pil", image_format: "png" };
}

function curl(url, lines) {
  return ["curl -sS --fail-with-body", ...lines.filter(Boolean), shell(url.href)].join(" \\\n  ");
}

export function forPicture({ model, file, latents, resized, precision, key }) {
  const scaling = factors(model.description.scaling);
  const decoding = scaling || ", do_scaling=False";
  const note = resized ? "# The page has resized the picture first; this sends the file as it is.\n" : "";
  const encode = server.address(model, "encode", { do_scaling: "True", precision });
  const decode = server.address(model, "decode", { do_scaling: "True", precision, ...tensorQuery(latents) });
  const header = key ? KEY_HEADER : "";
  return {
    python: `${note}${imports("remote_decode, remote_encode", key)}
from PIL import Image

endpoint = ${python(endpoint(model, precision))}
image = Image.open(${python(file.name)})
latents = remote_encode(endpoint, image${scaling}${keyArgument(key)})
picture = remote_decode(endpoint, latents${decoding}, image_format="png"${keyArgument(key)})
picture.save("picture.png")
`,
    shell: `${note}${curl(encode, [header, `-H ${shell(`Content-Type: ${file.type || "image/png"}`)}`,
      `--data-binary @${shell(file.name)} -D headers.txt -o latents.bin`])}
grep -i '^shape:' headers.txt
${curl(decode, [header, "-H 'Content-Type: tensor/binary' -H 'Accept: image/png'",
      "--data-binary @latents.bin -o picture.png"])}
`,
  };
}

export function forLatents({ model, file, latents, parameters, scaled, key }) {
  const isClip = latents.shape.length === 5;
  const { precision, height, width } = parameters;
  const scaling = scaled ? factors(model.description.scaling) : ", do_scaling=False";
  const size = height ? `, height=${height}, width=${width}` : "";
  const output = isClip ? ", output_type=\"mp4\", return_type=\"mp4\"" : ", image_format=\"png\"";
  const save = isClip ? "open(\"clip.mp4\", \"wb\").write(result)" : "result.save(\"picture.png\")";
  const query = isClip ? { shape: latents.shape, dtype: latents.dtype, output_type: "mp4" } : tensorQuery(latents);
  const url = server.address(model, "decode", { ...parameters, ...query });
  const accept = isClip ? "" : "-H 'Accept: image/png'";
  const name = file.name.replace(/^-/, "./-");
  return {
    python: `${imports("remote_decode", key)}
from safetensors.torch import load_file

endpoint = ${python(endpoint(model, precision))}
latents = load_file(${python(file.name)})[${python(latents.name)}]
result = remote_decode(endpoint, latents${scaling}${size}${output}${keyArgument(key)})
${save}
`,
    // The tensor's bytes lie at a fixed place in the file.
    shell: `tail -c +${latents.offset + 1} ${shell(name)} | head -c ${latents.bytes.length} | \\
${curl(url, [key ? KEY_HEADER : "", `-H 'Content-Type: tensor/binary' ${accept}`.trim(),
      `--data-binary @- -o ${isClip ? "clip.mp4" : "picture.png"}`])}
`,
  };
}
