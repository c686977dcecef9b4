// node generate.mjs PROMPT FILE [ENDPOINT]: one request, its progress, its picture.
import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const [prompt, file, endpoint = "tcp://127.0.0.1:5555"] = process.argv.slice(2);
const socket = new Dealer({ linger: 0 });
socket.connect(endpoint);

const requestId = randomUUID();
await socket.send(encode({
  protocol: 1,
  request_id: requestId,
  action: "inference.text2img",
  data: { prompt, seed: 7 },
  events: ["progress"],
}));

for await (const [raw, ...attachments] of socket) {
  const header = decode(raw);
  if (header.request_id !== requestId) continue; // `alive`, or an answer to something else
  if (header.kind === "event") {
    console.log(`step ${header.data.step} of ${header.data.steps}`);
    continue;
  }
  if (!header.success) throw new Error(`${header.error.code}: ${header.error.message}`);
  await writeFile(file, attachments[header.data.images[0].attachment]);
  break;
}
socket.close();
