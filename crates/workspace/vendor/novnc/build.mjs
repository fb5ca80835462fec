// Bundles noVNC's modules, unchanged, into the one file that the service carries: `npm ci --ignore-scripts && npm run build`.
// The result is in git, so that building Luna needs neither npm nor its registry.
import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const { version } = JSON.parse(await readFile("node_modules/@novnc/novnc/package.json", "utf8"));
const modules = "node_modules/@novnc/novnc";
await build({
  stdin: { contents: 'export { default } from "@novnc/novnc";', resolveDir: "." },
  bundle: true,
  format: "esm",
  minify: true,
  target: "es2022",
  outfile: "../../assets/novnc.js",
  banner: {
    js: `/*! noVNC ${version}, https://github.com/novnc/noVNC/tree/v${version}. Copyright (C) The noVNC authors, MPL-2.0; with pako, MIT. See novnc.LICENSE.txt. */`,
  },
});
const licences = [await readFile(`${modules}/LICENSE.txt`, "utf8"), "\nvendor/pako:\n\n", await readFile(`${modules}/vendor/pako/LICENSE`, "utf8")];
await writeFile("../../assets/novnc.LICENSE.txt", licences.join(""));
