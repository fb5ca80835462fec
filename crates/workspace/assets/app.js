// @ts-check
// The page: asks what the computer is and how far its desktop has come, then shows its screen and keeps showing it.
import RFB from "./novnc.js";

/** @param {string} id */
const the = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const root = document.documentElement;

// A ticket is void once it was used; it need not stay in the address bar or in the history.
if (location.search.includes("ticket=")) history.replaceState(null, "", "/");

/** @type {RFB | null} */
let screen = null;
/** @type {any} */
let facts = null;
let tries = 0;

/**
 * @param {"starting" | "connected" | "waiting" | "locked" | "failed"} state
 * @param {string} connection
 * @param {string} [title]
 * @param {string} [text]
 */
function show(state, connection, title, text = "") {
  root.dataset.state = state;
  write("connection-text", connection);
  if (title) write("stage-title", title);
  write("stage-text", text);
}

/** Writes only what differs, so that screen readers are told only what changed.
 * @param {string} id
 * @param {string} text */
function write(id, text) {
  if (the(id).textContent !== text) the(id).textContent = text;
}

/** @param {number} milliseconds */
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** One look at the computer. Returns whether its screen can be shown. */
async function look() {
  let answer;
  try {
    answer = await fetch("/v1/sandbox", { headers: { accept: "application/json" }, signal: AbortSignal.timeout(8000) });
  } catch {
    if (!screen) show("waiting", "Not reachable", "Waiting for the computer", "It does not answer. It may be stopped or restarting.");
    return false;
  }
  if (answer.status === 401) {
    screen?.disconnect();
    show("locked", "Locked", "This page's session is over", "Open the computer again with `luna open`.");
    return false;
  }
  if (!answer.ok) return false;
  facts = await answer.json();
  describe();
  const stage = facts.desktop.screen;
  the("step-screen").classList.toggle("done", stage.stage === "ready");
  if (stage.stage === "ready") return true;
  if (!screen) {
    if (stage.stage === "failed") show("failed", "No screen", "The screen does not start", stage.because);
    else show("starting", "Starting", "The desktop is starting");
  }
  return false;
}

/** Connects; resolves when the connection is over. Says whether there ever was a picture. */
function watch() {
  return new Promise((resolve) => {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    let seen = false;
    const rfb = new RFB(the("screen"), `${scheme}://${location.host}/ws/screen`, { shared: true, wsProtocols: ["binary"] });
    rfb.scaleViewport = true;
    rfb.background = "transparent";
    rfb.showDotCursor = true;
    rfb.qualityLevel = 8;
    rfb.compressionLevel = 1;
    rfb.addEventListener("connect", () => {
      seen = true;
      the("step-picture").classList.add("done");
      show("connected", "Live");
      rfb.focus({ preventScroll: true });
    });
    rfb.addEventListener("disconnect", () => {
      screen = null;
      the("step-picture").classList.remove("done");
      resolve(seen);
    });
    screen = rfb;
  });
}

async function keepWatching() {
  for (;;) {
    if (await look()) {
      const seen = await watch();
      tries = seen ? 0 : tries + 1;
      if (root.dataset.state !== "locked") show("waiting", "Reconnecting", "Connecting to the screen");
    }
    // Fast at first, when a start takes a second; then patient.
    await pause(Math.min(200 * 1.5 ** tries, 5000));
    if (!screen && root.dataset.state !== "starting") tries = Math.min(tries + 1, 8);
  }
}

async function keepLooking() {
  for (;;) {
    await pause(screen ? 5000 : 60_000);
    if (screen && document.visibilityState === "visible") await look();
  }
}

/** @param {number | null} bytes */
const size = (bytes) => (bytes === null ? "none seen" : `${(bytes / 2 ** 30).toFixed(1)} GiB`);

function wallText() {
  if (facts.wall === "container") return "Container";
  if (facts.wall === "vm") return { kvm: "Virtual machine (KVM)", tcg: "Virtual machine (TCG, emulated)" }[facts.accelerator] ?? "Virtual machine";
  return "Wall unknown";
}

function lead() {
  if (facts.wall === "container") return "A container: it shares the kernel of the host it runs on.";
  if (facts.wall === "vm" && facts.accelerator === "tcg") return "A virtual machine with a kernel of its own, on software emulation.";
  if (facts.wall === "vm") return "A virtual machine with a kernel of its own, on hardware virtualization.";
  return "Whoever started this computer did not say which wall it stands behind.";
}

function describe() {
  const kernel = `Linux ${facts.kernel.release}`;
  const name = facts.name ?? facts.hostname;
  write("name", name);
  document.title = `${name} · Luna`;
  write("wall-text", wallText());
  write("kernel-text", `Linux ${facts.kernel.release.split("-")[0]}`);
  the("wall").toggleAttribute("data-doubt", facts.doubts.length > 0);
  write("facts-lead", lead());
  the("facts-doubts").replaceChildren(...facts.doubts.map(item));
  const { isolation, limits, browser } = facts;
  const own = isolation.user_ids.every((/** @type {any} */ map) => map.outside !== 0 || map.inside !== 0);
  const rows = [
    ["Kernel", `${kernel}, ${facts.kernel.machine}`],
    ["Host name", facts.hostname],
    ["User", `uid ${isolation.user_id}${own ? ", in a user namespace" : ", no user namespace"}`],
    ["Capabilities", isolation.capabilities === "0" ? "none" : `0x${isolation.capabilities}`],
    ["New privileges", isolation.no_new_privileges ? "impossible" : "possible"],
    ["Seccomp filters", String(isolation.seccomp_filters)],
    ["Network", isolation.network_interfaces.join(", ") || "loopback only"],
    ["Browser's sandbox", browser.renderers === 0 ? "no page open" : `${browser.confined} of ${browser.renderers} page processes confined`],
    ["Processors", String(limits.cpus)],
    ["Memory", `${size(limits.memory_bytes)}, limit ${size(limits.memory_limit_bytes)}`],
    ["Luna", `${facts.luna ?? "unknown"} outside, service ${facts.service}`],
  ];
  the("facts-list").replaceChildren(
    ...rows.flatMap(([term, text]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      dt.textContent = term;
      dd.textContent = text;
      return [dt, dd];
    }),
  );
  const failed = facts.desktop.browser.stage === "failed" ? facts.desktop.browser : null;
  const notice = failed ? `The browser is not running: ${failed.because}.${failed.hint ? ` To change that, ${failed.hint}.` : ""}` : "";
  write("notice", notice);
  the("notice").hidden = !failed;
}

/** @param {string} text */
function item(text) {
  const li = document.createElement("li");
  li.textContent = text;
  return li;
}

the("wall").addEventListener("click", () => /** @type {HTMLDialogElement} */ (the("facts")).showModal());
the("full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else root.requestFullscreen?.();
});

keepWatching();
keepLooking();
