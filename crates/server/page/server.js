// The server's routes as functions. Addresses are relative to the page, so that a proxy may put it below a path.

const BASE = new URL(".", document.baseURI);

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
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

export const server = {
  // In memory only, and sent with work only.
  key: "",

  async info() {
    return (await ask(new URL("info", BASE))).json();
  },

  async status() {
    return (await ask(new URL("status", BASE))).json();
  },

  // The address of an operation; parameters that are undefined are left out, lists are repeated.
  address(model, operation, parameters = {}) {
    const path = model.default ? operation : `${model.name}/${operation}`;
    const url = new URL(path, BASE);
    for (const [name, value] of Object.entries(parameters)) {
      for (const one of [value].flat()) if (one !== undefined && one !== "") url.searchParams.append(name, one);
    }
    return url;
  },

  // Posts work. `{response, seconds, timing}`.
  async post(url, body, { accept, type, signal }) {
    const headers = { Accept: accept, "Content-Type": type };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
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
};
