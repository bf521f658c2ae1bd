// The playground: pick a service, fill its form, run it, watch the job.

import { ApiError, apiKey, base, cancel, events, openapi, readiness, run, status } from "./api.js";
import { byId, make } from "./dom.js";
import { buildFields } from "./form.js";
import { readable, showOutput } from "./output.js";

const POLL_MS = 500;
const READINESS_MS = 3000;
const ENDED = { COMPLETED: "good", FAILED: "bad", TIMED_OUT: "bad", CANCELLED: "wait" };
const STATES = { READY: "good", FAILED: "bad", STOPPED: "bad" };

let schemas = {};
let states = {};
let current = "";
let fields = [];
let job = null;

const resolve = (reference) => schemas[reference.split("/").pop()];
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function start() {
  byId("key").value = apiKey.get();
  byId("key").addEventListener("input", (event) => { apiKey.set(event.target.value.trim()); showCurl(); });
  byId("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(); }
  });
  byId("cancel").addEventListener("click", () => { if (job) cancel(job.service, job.id).catch(showError); });
  byId("copy").addEventListener("click", copyCurl);
  addEventListener("hashchange", () => choose(location.hash.slice(1)));
  const described = await openapi();
  schemas = described.components.schemas;
  await watchReadiness(described.tags.map((tag) => tag.name));
}

async function watchReadiness(names) {
  for (;;) {
    const seen = await readiness().catch(() => null);
    if (seen) {
      states = seen.services;
      showServices(names.filter((name) => name in states));
    }
    await pause(READINESS_MS);
  }
}

function showServices(names) {
  const buttons = names.map((name) => {
    const { state } = states[name];
    const dot = make("span", { className: `dot ${STATES[state] ?? "wait"}`, "aria-hidden": "true" });
    const button = make("button", { type: "button", onclick: () => { location.hash = name; } }, dot, name);
    button.append(make("small", {}, state.toLowerCase()));
    button.setAttribute("aria-current", String(name === current));
    return make("li", {}, button);
  });
  const text = buttons.map((button) => button.textContent).join("");
  if (byId("services").textContent !== text) keepFocus(() => byId("services").replaceChildren(...buttons));
  if (!current) choose(names.includes(location.hash.slice(1)) ? location.hash.slice(1) : names[0]);
  showNotice();
}

/** Redraw without throwing a keyboard user out of the list. */
function keepFocus(redraw) {
  const index = [...byId("services").querySelectorAll("button")].indexOf(document.activeElement);
  redraw();
  if (index >= 0) byId("services").querySelectorAll("button")[index]?.focus();
}

function choose(name) {
  if (!(name in states) || name === current) return;
  current = name;
  setRunning(null);
  for (const button of byId("services").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(button.childNodes[1].textContent === name));
  }
  const schema = inputSchema();
  byId("service-title").textContent = name;
  byId("service-about").textContent = schema.description ?? "";
  fields = buildFields(schema, resolve, showCurl);
  byId("fields").replaceChildren(...fields.filter((field) => field.shown).map((field) => field.element));
  byId("optional").replaceChildren(...fields.filter((field) => !field.shown).map((field) => field.element));
  byId("more").firstChild.textContent = `More settings (${byId("optional").childElementCount})`;
  byId("more").hidden = fields.every((field) => field.shown);
  clearResult();
  showCurl();
  showNotice();
}

function showNotice() {
  const { demo, state, reason } = states[current] ?? {};
  const notices = [];
  if (demo) notices.push("Demo weights: a tiny model that comes with the package, to try everything out. Its answers say nothing of what the full model can do.");
  if (state === "LOADING") notices.push(`Jobs wait in the queue: ${reason ?? "the model is being loaded"}.`);
  if (state === "FAILED") notices.push(reason ?? "The model is not available.");
  byId("notice").hidden = notices.length === 0;
  byId("notice").classList.toggle("bad", state === "FAILED");
  if (byId("notice").textContent !== notices.join(" ")) byId("notice").textContent = notices.join(" ");
}

const inputSchema = () => resolve(schemas[`${current}.Run`].properties.input.anyOf[0].$ref);

/** The form's values; null, and the field marked, if one cannot be read. */
function readForm() {
  const input = {};
  for (const field of fields) {
    try {
      const value = field.read();
      if (value !== undefined) input[field.name] = value;
    } catch {
      field.fail("This is no valid JSON.");
      field.focus();
      return null;
    }
  }
  return input;
}

async function submit() {
  const input = readForm();
  if (!input || job) return;
  const mine = { service: current, id: null };
  setRunning(mine);
  clearResult();
  try {
    mine.id = (await run(mine.service, input)).id;
    if (job === mine) await follow(mine);
  } catch (error) {
    if (job === mine) showError(error);
  } finally {
    if (job === mine) setRunning(null);
  }
}

function setRunning(running) {
  job = running;
  byId("run").disabled = Boolean(running);
  byId("cancel").hidden = !running?.id;
}

/** Poll the status, and read the stream beside it, until the job has ended or another service was chosen. */
async function follow(followed) {
  setRunning(followed);
  const stop = new AbortController();
  let woken;
  const streaming = events(followed.service, followed.id, (name, data) => {
    if (name === "status") woken?.();
    else if (job === followed) showChunk(data);
  }, stop.signal).catch(() => {});
  for (let ended = false; !ended && job === followed;) {
    const shown = await status(followed.service, followed.id);
    if (job === followed) showJob(shown);
    ended = shown.status in ENDED;
    if (!ended) await Promise.race([pause(POLL_MS), new Promise((wake) => { woken = wake; })]);
  }
  await Promise.race([streaming, pause(POLL_MS)]);
  stop.abort();
}

function showJob(shown) {
  const ended = shown.status in ENDED;
  byId("badge").hidden = false;
  byId("badge").className = `badge ${ENDED[shown.status] ?? ""}`;
  byId("badge").textContent = shown.status.replaceAll("_", " ").toLowerCase();
  say(sentence(shown));
  const fraction = ended ? undefined : shown.output?.progress;
  byId("progress").hidden = ended;
  if (fraction === undefined) byId("progress").removeAttribute("value");
  else byId("progress").value = fraction;
  if (!ended) return;
  if (shown.error) showProblem(shown.error);
  // What was streamed is in the output too, as a rule.
  if (shown.status === "COMPLETED") byId("streamed").open = false;
  showOutput(byId("output"), shown.output);
  byId("raw").hidden = false;
  byId("raw").querySelector("pre").textContent = readable(shown);
}

function sentence({ status: state, queuePosition, reason, delayTime, executionTime }) {
  if (state === "IN_QUEUE") return reason ? `Waiting: ${reason}.` : `Waiting in the queue, place ${queuePosition ?? "unknown"}.`;
  if (state === "IN_PROGRESS") return "Running …";
  return `${seconds(executionTime)} on the model after ${seconds(delayTime)} in the queue.`;
}

const seconds = (milliseconds = 0) => (milliseconds < 1000 ? `${milliseconds} ms` : `${(milliseconds / 1000).toFixed(1)} s`);

/** Tell the status to eyes and screen readers, once per change. */
function say(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function showChunk(chunk) {
  if (byId("streamed").hidden) Object.assign(byId("streamed"), { hidden: false, open: true });
  byId("stream").append(typeof chunk === "string" ? chunk : `${JSON.stringify(chunk)}\n`);
  byId("stream").scrollTop = byId("stream").scrollHeight;
}

function showError(error) {
  say("Not accepted.");
  byId("progress").hidden = true;
  if (error instanceof ApiError && error.status === 401) {
    showProblem("The server asks for an API key, or for another one.");
    byId("key").focus();
    return;
  }
  showProblem(error instanceof ApiError ? error.message : `The server cannot be reached: ${error.message}`);
}

/** Show an error, at the field that it names where it names one. */
function showProblem(text) {
  byId("error").hidden = false;
  byId("error").textContent = text;
  const named = /^\$\.(\w+)[^:]*: (.*)$/.exec(text);
  const field = named && fields.find((candidate) => candidate.name === named[1]);
  if (!field) return;
  field.fail(named[2]);
  if (!field.shown) byId("more").open = true;
  field.focus();
}

function clearResult() {
  for (const field of fields) field.fail("");
  for (const id of ["badge", "progress", "error", "streamed", "raw"]) byId(id).hidden = true;
  byId("stream").textContent = "";
  showOutput(byId("output"));
  say(job ? "Sending …" : "Nothing has run yet.");
}

function curlLine(quoteLong) {
  let input = {};
  try {
    input = Object.fromEntries(fields.map((field) => [field.name, field.read()]).filter(([, value]) => value !== undefined));
  } catch { /* half-typed JSON: the line follows once it is whole */ }
  const body = quoteLong ? JSON.stringify({ input }) : readable({ input });
  const key = apiKey.get() ? ' \\\n  -H "Authorization: Bearer $API_KEY"' : "";
  const url = `${location.origin}${base(current)}/runsync`;
  return `curl -sS ${url}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body.replaceAll("'", "'\\''")}'`;
}

function showCurl() {
  byId("curl").textContent = curlLine(false);
}

async function copyCurl() {
  await navigator.clipboard.writeText(curlLine(true));
  byId("copy").textContent = "Copied";
  await pause(1500);
  byId("copy").textContent = "Copy";
}

start().catch(showError);
