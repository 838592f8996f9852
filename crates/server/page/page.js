// The page: asks the server what it is, then keeps the status fresh and the playground ready.

import { server } from "./server.js";
import { startPlayground } from "./playground.js";
import { StatusView } from "./status.js";

const POLL_MS = 2000;
const view = new StatusView();
let started = false;

async function refresh() {
  try {
    if (!started || view.needsInfo()) {
      const info = await server.info();
      view.showInfo(info);
      if (!started) startPlayground(info);
      started = true;
    }
    view.show(await server.status());
  } catch (problem) {
    view.showLost(problem);
  }
}

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
poll();
