// What the server tells of itself: state, queue, the running job, the last minutes, the models.

import { Chart, element } from "./chart.js";

const at = (id) => document.getElementById(id);
const MIB = 2 ** 20;

export function bytes(count) {
  if (count >= 1024 * MIB) return `${(count / 1024 / MIB).toFixed(1)} GiB`;
  if (count >= MIB) return `${(count / MIB).toFixed(count < 10 * MIB ? 1 : 0)} MiB`;
  return `${(count / 1024).toFixed(count < 10240 ? 1 : 0)} KiB`;
}

export function seconds(time) {
  if (time < 0.9995) return `${Math.round(time * 1000)} ms`;
  return `${time.toFixed(time < 10 ? 2 : 1)} s`;
}

function span(time) {
  const [days, hours, minutes] = [Math.floor(time / 86400), Math.floor(time / 3600) % 24, Math.floor(time / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(time)} s`;
}

// Fills a list of names and what belongs to them.
export function pairs(list, entries) {
  list.replaceChildren(...entries.map(([name, ...values]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", {}, ...values))));
}

export class StatusView {
  constructor() {
    this.throughput = new Chart({ title: "Megapixels per second", names: [""], format: (rate) => rate.toFixed(2) });
    this.latency = new Chart({ title: "Latency, mean", names: ["", "longest"], format: seconds });
    this.memory = new Chart({ title: "Memory", names: [""], format: bytes });
    at("charts").append(this.throughput.element, this.latency.element, this.memory.element);
    this.lost = false;
  }

  // What `/info` says only changes when the server does.
  needsInfo() {
    return this.lost;
  }

  showInfo(info) {
    this.info = info;
    at("engine").textContent = `${info.version}, ${info.models[0].engine}`;
    at("models").replaceChildren(...info.models.map(modelCard));
  }

  show(status) {
    this.setState(status.state);
    this.lost = false;
    at("stale").hidden = true;
    const { queue, memory, history } = status;
    const minute = Math.ceil(60 / history.step_seconds);
    const lately = history.answered.slice(-minute).reduce((sum, count) => sum + count, 0);
    const failed = history.failed.reduce((sum, count) => sum + count, 0);
    pairs(at("now"), [
      ["Now", ...running(status)],
      ["Waiting", `${queue.waiting} of ${queue.capacity}`],
      ["Answered", `${lately}`, quiet("in the last minute")],
      ["Refused or failed", `${failed}`, quiet(`in ${(history.steps * history.step_seconds) / 60} minutes`)],
      ["Up for", span(status.uptime_seconds)],
    ]);
    const frame = { slots: history.steps, minutes: (history.steps * history.step_seconds) / 60 };
    const rate = history.pixels.map((count) => count / history.step_seconds / 1e6);
    // The last step is not over yet.
    this.throughput.show([rate.slice(0, -1)], { ...frame, slots: frame.slots - 1 });
    this.latency.show([history.mean_seconds, history.longest_seconds], frame);
    this.memory.show([history.resident_bytes], frame);
    if (memory.limit_bytes) this.memory.value.textContent += ` of ${bytes(memory.limit_bytes)}`;
  }

  showLost(problem) {
    this.setState("unreachable");
    this.lost = true;
    at("stale").textContent = `${problem.message} What is shown may be old.`;
    at("stale").hidden = false;
  }

  setState(state) {
    const pill = at("state");
    // Setting equal text again would be read out again.
    if (pill.textContent !== state) pill.textContent = state;
    pill.dataset.state = state;
  }
}

// What is said beside a figure.
function quiet(text) {
  return element("span", { className: "quiet", textContent: text });
}

// The running jobs as text and bars.
function running(status) {
  if (!status.running.length) return ["idle"];
  return status.running.flatMap((job) => {
    const text = `${Math.round(job.progress * 100)} %`;
    const bar = element("progress", { max: 1, value: job.progress, "aria-label": "Progress of the running job" });
    return [element("span", { textContent: text }), quiet(`after ${seconds(job.elapsed_seconds)}`), bar];
  });
}

// How the diffusion model's latents become the autoencoder's, in words.
function scalingText(scaling) {
  const shift = (factors) => (factors.shift_factor ? `, shift ${factors.shift_factor}` : "");
  if (scaling.kind === "scalar") return `factor ${scaling.scaling_factor}${shift(scaling)}`;
  if (scaling.kind === "identity") return "none: takes the diffusion model's latents";
  if (scaling.kind === "per_channel") return "mean and deviation per channel";
  return "mean and deviation per element of a patch";
}

function modelCard(model) {
  const about = model.description;
  const halves = [["decoder", about.decoder_parameters], ["encoder", about.encoder_parameters]];
  const rows = [
    ["Path", model.default ? `/ (default) and /${model.name}` : model.path],
    ["Architecture", about.family],
    ["Latents", `${about.latent_channels} channels, ${about.spatial_factor} pixels each way`],
    ["Scaling", scalingText(about.scaling)],
    ["Parameters", halves.filter(([, count]) => count).map(([half, count]) => `${half} ${(count / 1e6).toFixed(1)} M`).join(", ")],
    ["Weights", `${about.dtype}, ${bytes(about.file_bytes)}`],
    ["Source", about.source],
  ];
  const list = element("dl", {}, ...rows.flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
  return element("li", {}, element("h3", { textContent: model.name }), list);
}
