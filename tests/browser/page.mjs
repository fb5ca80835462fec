// The page on 8080 in a real Chromium: `node page.mjs URL [ARTEFACTS]`.
//
// URL is what `luna up` or `luna open` prints, ticket and all. LUNA_EXPECT_WALL (container or vm) and, for a vm,
// LUNA_EXPECT_ACCELERATOR (kvm or tcg) are what the badge must say; on an emulated processor everything may take longer.
// CHROMIUM names the browser to drive (/usr/bin/chromium). Screenshots go to ARTEFACTS (./artefacts). Prints one line a
// check and a summary; exits 1 if any check failed.
import { mkdir } from "node:fs/promises";
import path from "node:path";
import { chromium } from "playwright-core";

const [url = process.env.LUNA_URL, artefacts = process.env.LUNA_ARTEFACTS ?? "artefacts"] = process.argv.slice(2);
if (!url) {
  console.error("usage: node page.mjs URL [ARTEFACTS]");
  process.exit(2);
}
const origin = new URL(url).origin;
const expected = { wall: process.env.LUNA_EXPECT_WALL ?? "container", accelerator: process.env.LUNA_EXPECT_ACCELERATOR || null };
const patience = expected.accelerator === "tcg" ? 5 : 1;

// The band on the computer's start page (images/agent/luna-agent/start/index.html).
const BAND = { rose: [255, 93, 115], gold: [255, 200, 87], mint: [61, 220, 151], sky: [77, 163, 255] };

let passed = 0;
let failed = 0;
async function check(name, body) {
  try {
    const detail = await body();
    passed += 1;
    console.log(`ok      ${name}${detail ? `: ${detail}` : ""}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${String(error.message ?? error).split("\n")[0]}`);
  }
}
/** What needs the browser inside to paint: on an emulated processor that takes minutes, so it is looked at when asked. */
async function painted(name, body) {
  if (expected.accelerator === "tcg" && !process.env.LUNA_EMULATED_BROWSER) {
    console.log(`skipped ${name}: Chromium paints for minutes on an emulated processor; LUNA_EMULATED_BROWSER=1 waits for it`);
    return;
  }
  await check(name, body);
}
function must(condition, message) {
  if (!condition) throw new Error(message);
}

/** How many sampled pixels of the canvas are near each colour; JPEG and scaling move them a little. */
const pixels = (page, colours) =>
  page.evaluate((colours) => {
    const canvas = document.querySelector("#screen canvas");
    if (!canvas?.width) return null;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const found = Object.fromEntries(Object.keys(colours).map((name) => [name, 0]));
    for (let at = 0; at < data.length; at += 4 * 7) {
      for (const [name, [red, green, blue]] of Object.entries(colours)) {
        const off = Math.abs(data[at] - red) + Math.abs(data[at + 1] - green) + Math.abs(data[at + 2] - blue);
        if (off < 30) found[name] += 1;
      }
    }
    return found;
  }, colours);

async function until(probe, what, usual = 30_000) {
  const end = Date.now() + usual * patience;
  let last;
  while (Date.now() < end) {
    last = await probe();
    if (last) return last;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`${what} did not come in ${usual * patience} ms`);
}

await mkdir(artefacts, { recursive: true });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Only this outer browser, and only where root runs the tests: Chromium refuses to start its sandbox as root.
  chromiumSandbox: process.getuid() !== 0,
});
const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, colorScheme: "dark" });
context.setDefaultTimeout(30_000 * patience);
const page = await context.newPage();
const complaints = [];
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("request", (request) => {
  const target = new URL(request.url());
  if (/^https?:$/.test(target.protocol) && target.origin !== origin) complaints.push(`asked ${target.origin}`);
});

const began = Date.now();
await check("the printed URL answers 200", async () => {
  const answer = await page.goto(url);
  must(answer.status() === 200, `it answered ${answer.status()}`);
});
await check("the ticket is gone from the address bar", async () => {
  await until(() => !page.url().includes("ticket"), "a clean address");
});
await check("the live screen arrives", async () => {
  await page.waitForFunction(() => document.documentElement.dataset.state === "connected", null, { timeout: 60_000 * patience });
  return `${Date.now() - began} ms after the click`;
});
await painted("the desktop's browser shows its start page", async () => {
  const found = await until(async () => {
    const found = await pixels(page, BAND);
    return found && Object.values(found).every((count) => count > 100) && found;
  }, "the four colours", 60_000);
  return `${Date.now() - began} ms after the click, ${JSON.stringify(found)}`;
});
await check("the badge names the wall and the kernel", async () => {
  const text = await page.textContent("#wall-text");
  const names = { container: "Container", vm: "Virtual machine", "vm kvm": "Virtual machine (KVM)", "vm tcg": "Virtual machine (TCG, emulated)" };
  must(text === names[[expected.wall, expected.accelerator].filter(Boolean).join(" ")], `it says \`${text}\``);
  const { wall, accelerator } = await (await page.request.get(`${origin}/v1/sandbox`)).json();
  must(wall === expected.wall && accelerator === expected.accelerator, `the service was told ${wall}, ${accelerator}`);
  const kernel = await page.textContent("#kernel-text");
  must(/^Linux \d+\.\d+/.test(kernel), `it says \`${kernel}\``);
  return `${text}, ${kernel}`;
});
await page.screenshot({ path: path.join(artefacts, "desktop.png") });
await check("a click on the badge shows what was measured", async () => {
  await page.click("#wall");
  const facts = await page.textContent("#facts");
  for (const word of ["Kernel", "Seccomp filters", "Browser's sandbox"]) must(facts.includes(word), `no \`${word}\``);
  await page.screenshot({ path: path.join(artefacts, "facts.png") });
  await page.keyboard.press("Escape");
  must(!(await page.isVisible("#facts")), "Escape does not close it");
});
await check("Chromium inside is confined by its own sandbox", async () => {
  const { browser } = await until(async () => {
    const facts = await (await page.request.get(`${origin}/v1/sandbox`)).json();
    return facts.browser.renderers > 0 && facts.browser.confined === facts.browser.renderers && facts;
  }, "a confined renderer", 60_000);
  must(browser.renderers > 0 && browser.confined === browser.renderers, JSON.stringify(browser));
  return `${browser.confined} of ${browser.renderers} renderers`;
});
await painted("keys and pointer reach the desktop", async () => {
  const before = await pixels(page, BAND);
  await page.click("#screen canvas", { position: { x: 600, y: 400 } });
  // A new tab covers the start page; closing it brings that back.
  await page.keyboard.press("Control+t");
  await until(async () => (await pixels(page, BAND)).rose < before.rose / 4, "another tab");
  await page.screenshot({ path: path.join(artefacts, "tab.png") });
  await page.keyboard.press("Control+w");
  await until(async () => (await pixels(page, BAND)).rose > before.rose / 2, "the start page again");
});
await check("a reload needs no ticket", async () => {
  await page.reload();
  await page.waitForFunction(() => document.documentElement.dataset.state === "connected", null, { timeout: 20_000 * patience });
});
await painted("a second page sees the same screen, in light colours and on a phone", async () => {
  const phone = await context.newPage();
  await phone.emulateMedia({ colorScheme: "light" });
  await phone.setViewportSize({ width: 390, height: 700 });
  await phone.goto(origin);
  await until(async () => {
    const found = await pixels(phone, BAND);
    return found && Object.values(found).every((count) => count > 100);
  }, "the four colours");
  await phone.screenshot({ path: path.join(artefacts, "phone.png") });
  await phone.close();
});
await check("the page complains about nothing and asks nobody else", () => {
  must(complaints.length === 0, complaints.join("; "));
});

await check("without a session the door stays shut", async () => {
  const stranger = await browser.newContext({ colorScheme: "light" });
  const door = await stranger.newPage();
  must((await door.goto(origin)).status() === 401, "it opened");
  await door.screenshot({ path: path.join(artefacts, "locked.png") });
  must((await door.goto(url)).status() === 401, "a used ticket opened it");
  for (const file of ["/v1/sandbox", "/app.js", "/novnc.js"]) {
    must((await stranger.request.get(origin + file)).status() === 401, `${file} opened`);
  }
  const health = await (await stranger.request.get(`${origin}/healthz`)).json();
  must(Object.keys(health).sort().join() === "browser,ok,screen", `health says ${JSON.stringify(health)}`);
  await stranger.close();
});
await check("another site's page cannot open the screen", async () => {
  const own = await page.evaluate((screen) => {
    const socket = new WebSocket(screen);
    return new Promise((resolve) => {
      socket.onopen = () => resolve(true);
      socket.onerror = () => resolve(false);
    }).finally(() => socket.close());
  }, `${origin.replace("http", "ws")}/ws/screen`);
  must(own, "not even the page itself can");
  // Cookies are shared between the ports of a host; only the origin tells its pages apart.
  const cookies = (await context.cookies(origin)).map(({ name, value }) => `${name}=${value}`).join("; ");
  for (const headers of [{ origin: "http://evil.example" }, { origin: `http://${new URL(origin).hostname}:1` }, { origin: "null" }]) {
    const answer = await page.request.get(`${origin}/ws/screen`, {
      headers: { cookie: cookies, connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13", "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==", ...headers },
    });
    must(answer.status() === 403, `${headers.origin} got ${answer.status()}`);
  }
});

await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
