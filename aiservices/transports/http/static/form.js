// A form from a JSON schema: one field per property, required ones (or else the first) in sight, the rest folded away.

import { make } from "./dom.js";

const LONG_TEXT = 200;
const PICKERS = { image: "image/*", audio: "audio/*" };

/** Build the fields of an object schema; returns [{name, shown, element, read, fail}]. */
export function buildFields(schema, resolve, onChange) {
  const properties = Object.entries(schema.properties ?? {});
  const required = new Set(schema.required ?? []);
  return properties.map(([name, property], place) => ({
    shown: required.size ? required.has(name) : place === 0,
    ...buildField(name, simplify(property, resolve), required.has(name), onChange),
  }));
}

/** Take the reference and the "or null" off a property, of one or several the several; keep the rest of it. */
function simplify(property, resolve) {
  const { anyOf, ...own } = property.$ref ? { ...resolve(property.$ref), ...property } : property;
  const all = (anyOf ?? []).filter((kind) => kind.type !== "null");
  const kinds = all.length > 1 && all.some(isLines) ? all.filter(isLines) : all;
  if (kinds.length !== 1) return anyOf ? own : property.$ref ? own : property;
  return { ...(kinds[0].$ref ? resolve(kinds[0].$ref) : kinds[0]), ...own };
}

function buildField(name, schema, required, onChange) {
  const control = controlOf(name, schema, required);
  const problem = make("p", { className: "problem", id: `problem-${name}`, hidden: true });
  const about = make("p", { id: `about-${name}` }, schema.description ?? "");
  Object.assign(control.input, { id: `field-${name}`, name, required });
  control.input.setAttribute("aria-describedby", `about-${name} problem-${name}`);
  const element = make("div", { className: "field" }, ...layout(name, schema, required, control, about), problem);
  const fail = (text) => {
    problem.textContent = text;
    problem.hidden = !text;
    control.input.setAttribute("aria-invalid", String(Boolean(text)));
  };
  element.addEventListener("input", () => { fail(""); onChange(); });
  return { name, element, read: control.read, fail, focus: () => control.input.focus() };
}

function layout(name, schema, required, control, about) {
  const label = make("label", { htmlFor: `field-${name}` }, title(name), required ? " *" : "");
  if (control.input.type === "checkbox") return [make("div", { className: "check" }, control.input, label), about];
  const limits = make("small", {}, limitsOf(schema));
  if (schema.maxLength && control.input.tagName === "TEXTAREA") count(control.input, limits, schema.maxLength);
  return [make("div", { className: "label-row" }, label, limits), about, control.input, control.extra];
}

const title = (name) => (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ").replace(/\burl(s?)\b/i, "URL$1");
const isLines = (schema) => schema.type === "array" && schema.items?.type === "string";

function count(input, place, limit) {
  const show = () => { place.textContent = `${input.value.length} / ${limit}`; };
  input.addEventListener("input", show);
  show();
}

function limitsOf({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }) {
  const low = minimum ?? exclusiveMinimum, high = maximum ?? exclusiveMaximum;
  if (high > 1e9) return low === undefined ? "" : `from ${low}`;
  if (low !== undefined && high !== undefined) return `${exclusiveMinimum === undefined ? "" : "above "}${low} to ${high}`;
  return low !== undefined ? `from ${low}` : high !== undefined ? `to ${high}` : "";
}

function controlOf(name, schema, required) {
  if (schema.enum) return choice(schema, required);
  if (schema.type === "boolean") return tick(schema);
  if (schema.type === "integer" || schema.type === "number") return number(schema);
  const picker = Object.keys(PICKERS).find((kind) => name.startsWith(kind) && /_urls?$/.test(name));
  if (isLines(schema)) return picker ? files(PICKERS[picker]) : lines();
  if (schema.type !== "string") return json(schema);
  return picker ? file(schema, PICKERS[picker]) : text(schema, required);
}

function choice(schema, required) {
  const options = schema.enum.map((value) => make("option", { value }, String(value)));
  const none = make("option", { value: "" }, schema.default == null ? "(not set)" : `(${schema.default})`);
  const input = make("select", {}, ...(required ? options : [none, ...options]));
  return { input, read: () => input.value || undefined };
}

function tick(schema) {
  const input = make("input", { type: "checkbox", checked: schema.default === true });
  return { input, read: () => (input.checked === (schema.default === true) ? undefined : input.checked) };
}

function number(schema) {
  const input = make("input", {
    type: "number",
    step: schema.type === "integer" ? "1" : "any",
    min: schema.minimum ?? schema.exclusiveMinimum,
    max: schema.maximum ?? schema.exclusiveMaximum,
    placeholder: schema.default == null ? "" : `default: ${schema.default}`,
  });
  return { input, read: () => (input.value === "" ? undefined : Number(input.value)) };
}

function text(schema, required) {
  const long = (schema.maxLength ?? Infinity) > LONG_TEXT;
  const example = schema.examples?.[0];
  const input = make(long ? "textarea" : "input", {
    placeholder: schema.default ? `default: ${schema.default}` : required || !example ? "" : `such as: ${example}`,
    value: required && example ? example : "",
  });
  return { input, read: () => input.value || undefined };
}

function lines() {
  const input = make("textarea", { placeholder: "one per line" });
  const read = () => {
    const words = input.value.split("\n").map((line) => line.trim()).filter(Boolean);
    return words.length ? words : undefined;
  };
  return { input, read };
}

/** URLs, one per line, and files that become data: URLs; the files come first. */
function files(accept) {
  let picked = [];
  const { input, read } = lines();
  const picker = make("input", { type: "file", accept, multiple: true, "aria-label": "or pick files" });
  const preview = make("span");
  const extra = make("div", { className: "file" }, picker, preview);
  picker.addEventListener("change", async () => {
    const chosen = [...picker.files];
    picked = await Promise.all(chosen.map(dataUrl));
    preview.replaceChildren(...chosen.map((one, place) => show(one, picked[place])));
    extra.dispatchEvent(new Event("input", { bubbles: true }));
  });
  return { input, extra, read: () => (picked.length ? [...picked, ...(read() ?? [])] : read()) };
}

function json(schema) {
  const example = schema.examples?.[0];
  const placeholder = example ? `such as: ${JSON.stringify(example)}` : "JSON";
  const input = make("textarea", { className: "json", placeholder });
  return { input, read: () => (input.value.trim() ? JSON.parse(input.value) : undefined) };
}

/** A URL, or a file that becomes a data: URL; the data stays out of the text field, which would choke on it. */
function file(schema, accept) {
  let data;
  const input = make("input", { type: "text", inputMode: "url", placeholder: schema.examples?.[0] ?? "https://…" });
  const picker = make("input", { type: "file", accept, "aria-label": "or pick a file" });
  const preview = make("span");
  const extra = make("div", { className: "file" }, picker, preview);
  const take = async (picked) => {
    data = picked ? await dataUrl(picked) : undefined;
    if (data) input.value = "";
    preview.replaceChildren(...(data ? [show(picked, data)] : []));
    extra.dispatchEvent(new Event("input", { bubbles: true }));
  };
  picker.addEventListener("change", () => take(picker.files[0]));
  input.addEventListener("input", () => { if (input.value) { picker.value = ""; take(); } });
  acceptDrops(extra, take);
  return { input, extra, read: () => data ?? (input.value.trim() || undefined) };
}

function acceptDrops(area, take) {
  area.addEventListener("dragover", (event) => { event.preventDefault(); area.classList.add("over"); });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}

function show(picked, data) {
  return picked.type.startsWith("image/")
    ? make("img", { src: data, alt: picked.name })
    : make("audio", { src: data, controls: true, "aria-label": picked.name });
}

function dataUrl(picked) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(picked);
  });
}
