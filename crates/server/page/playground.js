// The playground: a picture goes to latents and back, or latents to a picture, by the server's own routes.

import { element } from "./chart.js";
import { drawFile, psnr, toPng } from "./pictures.js";
import { server } from "./server.js";
import { forLatents, forPicture } from "./snippets.js";
import { bytes, pairs, seconds } from "./status.js";
import { readLatents, writeLatents } from "./tensors.js";

const at = (id) => document.getElementById(id);
const TENSOR = "tensor/binary";
let info;
let file = null;
let work = new AbortController();
let addresses = [];

export function startPlayground(told) {
  info = told;
  const option = (value, text = value) => element("option", { value, textContent: text });
  at("model").replaceChildren(...info.models.map((model, index) => option(String(index), model.name)));
  at("precision").replaceChildren(option("", `as set (${info.default_precision})`), ...info.precisions.map((name) => option(name)));
  at("key-field").hidden = info.authentication !== "bearer";
  at("key").addEventListener("input", (event) => { server.key = event.target.value.trim(); });
  at("file").addEventListener("change", (event) => take(event.target.files[0]));
  at("settings").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  at("split").addEventListener("input", moveSplit);
  at("cancel").addEventListener("click", cancel);
  addEventListener("pagehide", () => work.abort());
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", copy);
  listenForDrops();
}

function listenForDrops() {
  const over = (is) => at("drop").classList.toggle("over", is);
  document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    take(event.dataTransfer.files[0]);
  });
}

function take(given) {
  if (!given) return;
  file = given;
  at("again").disabled = false;
  run();
}

async function run() {
  if (!file) return;
  work.abort();
  work = new AbortController();
  const { signal } = work;
  clear();
  try {
    const isLatents = /\.(safetensors|latent)$/i.test(file.name);
    await (isLatents ? decodeFile(signal) : roundTrip(signal));
  } catch (problem) {
    if (signal.aborted) return;
    tell("");
    at("work").hidden = true;
    at("problem").textContent = problem.status === 401 ? `${problem.message} There is a field for it.` : problem.message;
    at("problem").hidden = false;
    if (problem.status === 401) at("key").focus();
  }
}

function cancel() {
  work.abort();
  clear();
  tell("Cancelled.");
  at("again").focus();
}

function clear() {
  addresses.forEach((address) => URL.revokeObjectURL(address));
  addresses = [];
  at("problem").hidden = true;
  for (const id of ["links", "snippets", "work"]) at(id).hidden = true;
  at("stage").dataset.mode = "empty";
  at("numbers").replaceChildren();
}

function tell(text) {
  at("progress").textContent = text;
}

function address(blob) {
  const made = URL.createObjectURL(blob);
  addresses.push(made);
  return made;
}

function settings() {
  const model = info.models[Number(at("model").value)];
  return { model, factor: model.description.spatial_factor, precision: at("precision").value || undefined };
}

async function roundTrip(signal) {
  const { model, factor, precision } = settings();
  const canvas = at("before");
  tell("Reading the picture…");
  const limits = { longest: Number(at("side").value), factor, maxPixels: info.limits.max_pixels };
  const resized = await drawFile(canvas, file, limits);
  const png = await toPng(canvas);
  signal.throwIfAborted();

  tell("Encoding…");
  const encode = server.address(model, "encode", { do_scaling: "True", precision });
  const encoded = await server.post(encode, png, { accept: TENSOR, type: "image/png", signal });
  const latents = {
    dtype: encoded.headers.get("dtype"),
    shape: JSON.parse(encoded.headers.get("shape")),
    bytes: new Uint8Array(await encoded.content.arrayBuffer()),
  };
  const decoded = await decode(model, latents, { do_scaling: "True", precision }, signal);
  at("stage").dataset.mode = "compare";
  moveSplit();
  const quality = await psnr(canvas, decoded.content);
  signal.throwIfAborted();
  const raw = 3 * canvas.width * canvas.height;
  finish("Done.", decoded, latents, [
    ["Likeness (PSNR)", Number.isFinite(quality) ? `${quality.toFixed(2)} dB` : "identical"],
    ["Picture", `${canvas.width} × ${canvas.height}`],
    ["Latents", bytes(latents.bytes.length), `1/${Math.round(raw / latents.bytes.length)} of the pixels`],
    ["Encode", ...times(encoded)],
    ["Decode", ...times(decoded)],
  ]);
  show(forPicture({ model, file, latents, resized, precision, key: info.authentication === "bearer" }));
}

async function decodeFile(signal) {
  const { model, precision } = settings();
  tell("Reading the file…");
  const latents = readLatents(await file.arrayBuffer());
  const isPacked = latents.shape.length === 3 && latents.shape[0] !== model.description.latent_channels;
  for (const field of document.querySelectorAll(".packed")) field.hidden = !isPacked;
  const scaled = at("scaling").value === "diffusion";
  const parameters = {
    do_scaling: scaled ? "True" : "False",
    precision,
    height: isPacked ? at("height").value : undefined,
    width: isPacked ? at("width").value : undefined,
  };
  const decoded = await decodeAsJob(model, latents, parameters, signal);
  at("stage").dataset.mode = latents.shape.length === 5 ? "clip" : "single";
  finish("Done.", decoded, null, [
    ["Latents", latents.shape.join(" × "), `${latents.name}, ${latents.dtype}`],
    ["Size of the file", bytes(file.size)],
    ["Decode", ...times(decoded)],
  ]);
  show(forLatents({ model, file, latents, parameters, scaled, key: info.authentication === "bearer" }));
}

// The parameters and headers that ask for a picture of these latents, or for a clip.
function request(latents, parameters, signal) {
  const isClip = latents.shape.length === 5;
  const output = isClip ? { output_type: "mp4" } : { output_type: "pil", image_format: "png" };
  return [
    { ...parameters, ...output, shape: latents.shape, dtype: latents.dtype },
    { accept: isClip ? "video/mp4" : "image/png", type: TENSOR, signal },
  ];
}

// Shows a preview at once, then the picture.
async function decode(model, latents, parameters, signal) {
  const [asked, ask] = request(latents, parameters, signal);
  const early = { wanted: true };
  preview(server.address(model, "decode", { ...asked, output: "preview" }), latents, ask, early);
  tell("Decoding…");
  const decoded = await server.post(server.address(model, "decode", asked), latents.bytes, ask);
  early.wanted = false;
  await showDecoded(decoded, false);
  return decoded;
}

// The same as a job: it can take long, so that it has a bar and can be cancelled.
async function decodeAsJob(model, latents, parameters, signal) {
  const [asked, ask] = request(latents, parameters, signal);
  tell("Decoding…");
  showState({ state: "queued", progress: 0 });
  const { width, latent_channels: channels, spatial_factor: factor } = { ...parameters, ...model.description };
  const isPatched = latents.shape.length === 4 && latents.shape[1] === 4 * channels;
  const pixels = Number(width) || latents.shape.at(-1) * factor * (isPatched ? 2 : 1);
  const decoded = await server.decodeAsJob(model, asked, latents.bytes, {
    ...ask,
    onPreview: (file) => showPreview(file, pixels, () => !signal.aborted),
    onState: (state) => { if (!signal.aborted) showState(state); },
  });
  signal.throwIfAborted();
  at("work").hidden = true;
  await showDecoded(decoded, latents.shape.length === 5);
  return decoded;
}

// How far a job is. Not read out at every step, as the bar tells who asks.
function showState({ state, progress, expected_seconds: left }) {
  at("share").value = progress ?? 0;
  const time = left === undefined ? "" : `, about ${seconds(left)} left`;
  at("left").textContent = state === "queued" ? `waiting${time}` : `${Math.round((progress ?? 0) * 100)} %${time}`;
  at("work").hidden = false;
}

async function showDecoded(decoded, isClip) {
  const picture = at("after");
  picture.removeAttribute("data-preview");
  if (isClip) {
    decoded.content = new Blob([decoded.content], { type: "video/mp4" });
    at("clip").src = address(decoded.content);
  } else {
    picture.src = address(decoded.content);
    await picture.decode();
    setSize(picture, 1);
  }
  at("tag-after").textContent = isClip ? "" : "decoded";
}

// A preview is welcome but not needed: some latent spaces have none.
async function preview(url, latents, ask, early) {
  const made = await server.post(url, latents.bytes, ask).catch(() => null);
  const isWanted = () => early.wanted && !ask.signal.aborted;
  if (made) await showPreview(made.content, latents.shape.at(-1) * settings().factor, isWanted);
}

// Shows a preview as wide as the picture will be, if it is wanted still.
async function showPreview(file, width, isWanted) {
  if (!isWanted()) return;
  const picture = at("after");
  picture.src = address(file);
  await picture.decode().catch(() => {});
  if (!isWanted()) return;
  setSize(picture, width / picture.naturalWidth);
  picture.dataset.preview = "";
  at("tag-after").textContent = "preview";
  at("stage").dataset.mode = "preview";
}

// Shows each pixel of the file as `factor` pixels.
function setSize(picture, factor) {
  picture.width = picture.naturalWidth * factor;
  picture.height = picture.naturalHeight * factor;
  at("compare").style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
}

function finish(text, decoded, latents, numbers) {
  tell(text);
  const engine = decoded.headers.get("x-remote-vae-engine");
  const parts = engine?.split("/") ?? [];
  const rows = engine ? [...numbers, ["Precision", parts.pop(), parts.join("/")]] : numbers;
  pairs(at("numbers"), rows.map(([name, value, more]) => more ? [name, value, element("span", { className: "quiet", textContent: more })] : [name, value]));
  const isClip = decoded.content.type.startsWith("video/");
  at("save-picture").href = address(decoded.content);
  at("save-picture").download = isClip ? "clip.mp4" : "picture.png";
  at("save-picture").textContent = isClip ? "Save the clip" : "Save the picture";
  at("save-latents").hidden = !latents;
  if (latents) at("save-latents").href = address(writeLatents(latents));
  at("links").hidden = false;
}

// The engine's time, and what the browser waited in all.
function times({ timing, milliseconds }) {
  const total = seconds(milliseconds / 1000);
  return timing.engine === undefined ? [total] : [seconds(timing.engine / 1000), `${total} in all`];
}

function show({ python, shell }) {
  at("python").textContent = python;
  at("curl").textContent = shell;
  at("copied").textContent = "";
  at("snippets").hidden = false;
}

function moveSplit() {
  const split = at("split");
  at("compare").style.setProperty("--split", `${split.value}%`);
  split.setAttribute("aria-valuetext", `original on the left ${split.value} %`);
}

async function copy(event) {
  const source = at(event.currentTarget.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    at("copied").textContent = "Copied.";
  } catch {
    // Without a secure context there is no clipboard: the text is selected instead.
    getSelection().selectAllChildren(source);
    at("copied").textContent = "Selected; press Ctrl+C to copy.";
  }
}
