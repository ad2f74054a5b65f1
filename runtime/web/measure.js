// Runs one model in ONNX Runtime Web. Nothing happens by itself: driver.py calls the steps in `globalThis.monograph`, and
// tensors cross as raw little-endian bytes over the loopback server, not through the debugger that drives the page.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};
const NS_PER_MS = 1e6;

let ort;
let session;
let model;
let sessionOptions;
let timedFeeds;

async function fetchBytes(url) {
  const response = await fetch(url, { cache: "no-store" });
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}`);
  return response.arrayBuffer();
}

async function loadLibrary(job) {
  ort = await import(`./ort/${job.build}`);
  ort.env.wasm.numThreads = job.threads;
  ort.env.wasm.wasmPaths = new URL("ort/", location.href).href;
}

// Fetch the model's bytes, which does not belong to the time that a session takes to be made.
async function fetchModel(job) {
  model = new Uint8Array(await fetchBytes("model.onnx"));
  const externalData = [];
  for (const [index, path] of job.externalData.entries()) {
    externalData.push({ path, data: new Uint8Array(await fetchBytes(`data/${index}`)) });
  }
  sessionOptions = { executionProviders: [job.provider], externalData, ...job.sessionOptions };
}

// Make the session; returns the nanoseconds. The first one of a page also compiles ONNX Runtime's WebAssembly.
async function create() {
  const start = performance.now();
  session = await ort.InferenceSession.create(model, sessionOptions);
  return nanoseconds(performance.now() - start);
}

function nanoseconds(milliseconds) {
  return Math.round(milliseconds * NS_PER_MS);
}

async function feedsOf(inputs) {
  const feeds = {};
  for (const { name, dtype, dims, url } of inputs) {
    feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](await fetchBytes(url)), dims);
  }
  return feeds;
}

// Hold these inputs for the calls to come, and call once cold; returns the nanoseconds.
async function firstRun(inputs) {
  timedFeeds = await feedsOf(inputs);
  const start = performance.now();
  await session.run(timedFeeds);
  return nanoseconds(performance.now() - start);
}

// Call until both minima are met, or until `max_s` with `fewest_runs` done (runtime/timing.py: Until); returns the
// nanoseconds of each call.
async function timeUntil(until) {
  const clock = () => performance.now();
  const samples = [];
  const began = clock();
  const isReached = (runCount, elapsed_s) => runCount >= until.min_runs && elapsed_s >= until.min_s
    || runCount >= until.fewest_runs && until.max_s !== null && elapsed_s >= until.max_s;
  while (!isReached(samples.length, (clock() - began) / 1e3)) {
    const start = clock();
    await session.run(timedFeeds);
    samples.push(clock() - start);
  }
  return samples.map(nanoseconds);
}

// Compute one batch, send one output back and return its dtype and shape.
async function run(inputs, outputName, url) {
  const output = (await session.run(await feedsOf(inputs), [outputName]))[outputName];
  if (output.type === "string") throw new Error(`output ${outputName} holds strings`);
  const response = await fetch(url, { method: "POST", body: output.data });
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}`);
  return { dtype: output.type, dims: output.dims };
}

// Make the session again with a verbose log, which goes to the console: ONNX Runtime Web tells the placement of nodes
// nowhere else.
async function createVerbosely() {
  await session.release();
  session = await ort.InferenceSession.create(model, { ...sessionOptions, logSeverityLevel: 0 });
}

// What the page is: whether it may use threads and the fine clock, how fine that is, and the GPU that the session took.
async function about() {
  const device = await ort.env.webgpu?.device;
  const adapter = await navigator.gpu?.requestAdapter();
  const info = device?.adapterInfo ?? adapter?.info;
  return {
    isolated: globalThis.crossOriginIsolated,
    clock_step_ns: clockStep(),
    adapter: info ? { name: nameOf(info), software: isSoftware(info) } : null,
  };
}

function nameOf({ vendor, architecture, device, description }) {
  return [vendor, architecture, device, description].filter(Boolean).join(" ");
}

function isSoftware(info) {
  return Boolean(info.isFallbackAdapter) || /swiftshader|llvmpipe|lavapipe|basic render/i.test(nameOf(info));
}

// The smallest difference between two readings of the clock, over 20 of its steps.
function clockStep() {
  let least = Infinity;
  for (let step = 0, last = performance.now(); step < 20; ) {
    const now = performance.now();
    if (now > last) {
      least = Math.min(least, now - last);
      last = now;
      step += 1;
    }
  }
  return nanoseconds(least);
}

globalThis.monograph = { about, loadLibrary, fetchModel, create, firstRun, timeUntil, run, createVerbosely };
