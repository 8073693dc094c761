// Unpacks Chromium, which lies compressed in its package, and the libraries that a bare system lacks, into the folder it is given.
import { execFileSync } from "node:child_process";
import { createReadStream, createWriteStream, chmodSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const folder = process.argv[2];
const unpack = (name, to) =>
  pipeline(createReadStream(join(folder, "node_modules/@sparticuz/chromium/bin", name)), createBrotliDecompress(), createWriteStream(to));

const archive = join(folder, "libraries.tar");
await unpack("al2023.tar.br", archive);
execFileSync("tar", ["-xf", archive, "-C", folder]);
rmSync(archive);
const unfinished = join(folder, "chromium.part");
await unpack("chromium.br", unfinished);
chmodSync(unfinished, 0o755);
renameSync(unfinished, join(folder, "chromium"));
