// A folder, a zip or a tar.gz from this computer as the tar.gz that the API takes; nothing in it is run.

const text = new TextEncoder();

async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

function octal(header, at, width, value) { header.set(text.encode(value.toString(8).padStart(width - 1, "0")), at); }

function header(name, size) {
  const block = new Uint8Array(512);
  const bytes = text.encode(name);
  if (bytes.length > 100) throw new Error(`${name}: a path may have 100 bytes here; \`puna deploy\` takes longer ones`);
  block.set(bytes, 0);
  octal(block, 100, 8, 0o644); octal(block, 108, 8, 0); octal(block, 116, 8, 0);
  octal(block, 124, 12, size); octal(block, 136, 12, 0);
  block.fill(32, 148, 156);
  block[156] = 48;
  block.set(text.encode("ustar\u000000"), 257);
  octal(block, 148, 7, block.reduce((sum, byte) => sum + byte, 0));
  return block;
}

// [[path, bytes]] -> tar.gz. A folder around everything is taken off, so that app.py is on top.
export async function pack(files) {
  const hidden = /(^|\/)(\.git|__pycache__|\.venv|node_modules)\//;
  let kept = files.filter(([path]) => !hidden.test(`${path}`) && !path.endsWith("/"));
  const tops = new Set(kept.map(([path]) => (path.includes("/") ? path.split("/")[0] : "")));
  if (tops.size === 1 && !tops.has("")) kept = kept.map(([path, bytes]) => [path.slice(path.indexOf("/") + 1), bytes]);
  if (!kept.length) throw new Error("there are no files in it");
  const parts = [];
  for (const [path, bytes] of kept.sort(([a], [b]) => (a < b ? -1 : 1))) {
    parts.push(header(path, bytes.length), bytes, new Uint8Array((512 - (bytes.length % 512)) % 512));
  }
  parts.push(new Uint8Array(1024));
  return through(new Uint8Array(await new Blob(parts).arrayBuffer()), new CompressionStream("gzip"));
}

async function unzip(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Error("this is no zip file");
  const found = [];
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left -= 1) {
    const method = view.getUint16(at + 10, true);
    const size = view.getUint32(at + 20, true);
    const lengths = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + lengths[0]));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const data = bytes.subarray(start, start + size);
    if (method !== 0 && method !== 8) throw new Error(`${name} is compressed in a way that browsers cannot undo`);
    found.push([name, method ? await through(data, new DecompressionStream("deflate-raw")) : data]);
    at += 46 + lengths[0] + lengths[1] + lengths[2];
  }
  return found;
}

// The chosen files: one archive, or a folder's files with their relative paths.
export async function fromFiles(list) {
  const files = [...list];
  const read = async (file) => new Uint8Array(await file.arrayBuffer());
  if (files.length === 1 && /\.(tar\.gz|tgz)$/i.test(files[0].name)) return read(files[0]);
  if (files.length === 1 && /\.zip$/i.test(files[0].name)) return pack(await unzip(await read(files[0])));
  return pack(await Promise.all(files.map(async (file) => [file.webkitRelativePath || file.name, await read(file)])));
}
