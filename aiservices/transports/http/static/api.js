// Calls of the job API. The key stays in this tab: sessionStorage forgets it with the tab.

const KEY = "aiservices.key";

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An answer that is no success. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error ?? `HTTP ${status}`);
    this.status = status;
  }
}

function headers(more = {}) {
  return apiKey.get() ? { ...more, Authorization: `Bearer ${apiKey.get()}` } : more;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers) });
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(answer.status, body);
  return body;
}

/** Where a service's operations are. */
export const base = (service) => `/${service}/api/v1`;

export const openapi = () => ask("/openapi.json");

/** The state of every service, also while they are not ready. */
export const readiness = async () => (await fetch("/readyz")).json();

export const run = (service, input) =>
  ask(`${base(service)}/run`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ input }),
  });

export const status = (service, id) => ask(`${base(service)}/status/${id}`);
export const cancel = (service, id) => ask(`${base(service)}/cancel/${id}`, { method: "POST" });

/** Call `onEvent(name, data)` for each server-sent event of the job, until its last one. EventSource knows no headers. */
export async function events(service, id, onEvent, signal) {
  const options = { headers: headers({ Accept: "text/event-stream" }), signal };
  const answer = await fetch(`${base(service)}/stream/${id}`, options);
  if (!answer.ok) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const blocks = (pending + part.value).split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) deliver(block, onEvent);
  }
}

function deliver(block, onEvent) {
  const found = /^event: (\w+)\ndata: (.*)$/s.exec(block);
  if (found) onEvent(found[1], JSON.parse(found[2]));
}
