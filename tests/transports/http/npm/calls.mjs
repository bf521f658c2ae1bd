// Makes calls of RunPod's unmodified JavaScript client, read from standard input as [[endpoint, method, ...arguments], …],
// and prints what each returned or threw. "$0" as an argument is the id that call 0 returned.
import runpod from "runpod-sdk";

console.log = () => {};
const [baseUrl, key] = process.argv.slice(2);
const sdk = runpod(key, { baseUrl });

async function call(endpoint, method, given) {
  const result = sdk.endpoint(endpoint)[method](...given);
  if (method !== "stream") return await result;
  const chunks = [];
  for await (const chunk of result) chunks.push(chunk);
  return chunks;
}

let text = "";
for await (const part of process.stdin) text += part;
const results = [];
for (const [endpoint, method, ...given] of JSON.parse(text)) {
  const filled = given.map((one) => (/^\$\d+$/.test(one) ? results[one.slice(1)].returned.id : one));
  try {
    results.push({ returned: await call(endpoint, method, filled) });
  } catch (error) {
    results.push({ status: error.response?.status, data: error.response?.data, message: String(error) });
  }
}
process.stdout.write(JSON.stringify(results));
