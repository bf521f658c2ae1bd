// A job's output as something to look at: audio plays, lists become chips, objects become tables.

import { make } from "./dom.js";

const LONG = 400;

/** Replace what `place` shows by this output, its fields in the order in which they came. */
export function showOutput(place, output) {
  for (const audio of place.querySelectorAll("audio")) URL.revokeObjectURL(audio.src);
  if (output === undefined) return place.replaceChildren();
  const fields = isObject(output) ? output : { output };
  if (!isSpeech(fields)) return place.replaceChildren(table(fields));
  const { audio, ...rest } = fields;
  place.replaceChildren(...player(audio, rest), table(rest));
}

const isSpeech = (output) => typeof output?.audio === "string" && typeof output?.media_type === "string";
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function player(audio, { media_type: type, format }) {
  const bytes = Uint8Array.from(atob(audio), (character) => character.charCodeAt(0));
  const src = URL.createObjectURL(new Blob([bytes], { type }));
  const link = make("a", { href: src, download: `speech.${format ?? "audio"}` }, "Download");
  return [make("audio", { src, controls: true, "aria-label": "Speech" }), make("p", {}, link)];
}

function table(object) {
  const rows = Object.entries(object).flatMap(([name, value]) => [
    make("dt", {}, name.replaceAll("_", " ")),
    make("dd", isLong(value) ? { className: "long", tabIndex: 0 } : {}, shown(value)),
  ]);
  return make("dl", {}, ...rows);
}

const isLong = (value) => typeof value === "string" && value.length > 2 * LONG;

function shown(value) {
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) {
    return value.length ? make("ul", { className: "chips" }, ...value.map((item) => make("li", {}, String(item)))) : "–";
  }
  if (isObject(value)) return table(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** JSON for reading: long strings (base64) are cut. */
export function readable(value) {
  const cut = (_, item) =>
    typeof item === "string" && item.length > LONG ? `${item.slice(0, 60)}… (${item.length} characters)` : item;
  return JSON.stringify(value, cut, 2);
}
