// The server's routes as functions. Addresses are relative to the page, so that a proxy may put it below a path.

const BASE = new URL(".", document.baseURI);

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// The events of a stream of server-sent events, `{name, data}` each.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (text + value).split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      const field = (name) => event.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("event")) yield { name: field("event"), data: JSON.parse(field("data")) };
    }
  }
}

// The bytes of a data URL, which the page's policy lets nobody fetch.
function blobOf(url) {
  const [head, text] = url.split(";base64,");
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: head.slice("data:".length) });
}

// Milliseconds of each stage, from a header such as `queue;dur=0.10, engine;dur=85.20`.
function serverTiming(text) {
  const stages = (text ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g);
  return Object.fromEntries(Array.from(stages, ([, name, time]) => [name, Number(time)]));
}

async function refused(response) {
  const body = await response.json().catch(() => ({}));
  const message = body.error ?? `The server answered with status ${response.status}.`;
  const wait = response.headers.get("retry-after");
  return new ServerError(wait ? `${message} Try again in ${wait} s.` : message, response.status);
}

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ServerError("The server cannot be reached.", 0);
  }
  if (!response.ok) throw await refused(response);
  return response;
}

// Parameters that are undefined are left out, lists are repeated.
function withParameters(url, parameters) {
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of [value].flat()) if (one !== undefined && one !== "") url.searchParams.append(name, one);
  }
  return url;
}

export const server = {
  // In memory only, and sent with work only.
  key: "",

  async info() {
    return (await ask(new URL("info", BASE))).json();
  },

  async status() {
    return (await ask(new URL("status", BASE))).json();
  },

  // The address of an operation.
  address(model, operation, parameters = {}) {
    const path = model.default ? operation : `${model.name}/${operation}`;
    return withParameters(new URL(path, BASE), parameters);
  },

  // What goes with every request for work.
  credentials() {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  },

  // Posts work. `{response, seconds, timing}`.
  async post(url, body, { accept, type, signal }) {
    const headers = { Accept: accept, "Content-Type": type, ...this.credentials() };
    const start = performance.now();
    const response = await ask(url, { method: "POST", headers, body, signal, cache: "no-store" });
    const content = await response.blob();
    return {
      content,
      headers: response.headers,
      milliseconds: performance.now() - start,
      timing: serverTiming(response.headers.get("server-timing")),
    };
  },

  // Has latents decoded as a job. `onPreview(blob)` and `onState(state)` tell of it, then the result comes as from `post`.
  // The server forgets the job in any case: at the end, after an error, and when the signal says so.
  async decodeAsJob(model, parameters, body, { accept, type, signal, onPreview, onState }) {
    const start = performance.now();
    const address = withParameters(new URL("v1/jobs", BASE), { ...parameters, model: model.name });
    const posted = await this.post(address, body, { accept, type, signal });
    const job = new URL(`v1/jobs/${JSON.parse(await posted.content.text()).id}`, BASE);
    const options = { headers: this.credentials(), signal, cache: "no-store" };
    const part = (name) => ask(new URL(`${job}/${name}`), options);
    try {
      await this.follow(await part("events"), { onPreview, onState });
      const response = await part("result");
      const content = await response.blob();
      return { content, headers: response.headers, milliseconds: performance.now() - start, timing: {} };
    } finally {
      fetch(job, { method: "DELETE", headers: this.credentials(), keepalive: true }).catch(() => {});
    }
  },

  // Reads a job's events to their end.
  async follow(response, { onPreview, onState }) {
    let last;
    try {
      for await (const { name, data } of events(response)) {
        if (name === "preview") await onPreview(blobOf(data.image));
        else onState(data);
        if (name === "end") last = data;
      }
    } catch (problem) {
      if (problem instanceof TypeError) throw new ServerError("The connection broke while the server was at work.", 0);
      throw problem;
    }
    if (last?.state === "done") return;
    throw new ServerError(last?.error ?? "The server has given up the job.", 0);
  },
};
