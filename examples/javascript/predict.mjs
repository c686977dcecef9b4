// node predict.mjs MODEL INPUT SHAPE FILE [ENDPOINT]: one tensor of float32, and what the model answers.
// SHAPE is like 1,4,256,2; FILE holds the numbers, little-endian, the last axis fastest.
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const [model, name, shape, file, endpoint = "tcp://127.0.0.1:5555"] = process.argv.slice(2);
const tensor = { name, dtype: "float32", shape: shape.split(",").map(Number), data: { attachment: 0 } };
const numbers = await readFile(file);
const socket = new Dealer({ linger: 0 });
socket.connect(endpoint);

const requestId = randomUUID();
const header = {
  protocol: 1,
  request_id: requestId,
  action: "inference.predict",
  data: { model_id: model, inputs: [tensor] },
  attachments: [{ media_type: "application/octet-stream", nbytes: numbers.length }],
};
await socket.send([encode(header), numbers]);

for await (const [raw, ...attachments] of socket) {
  const answer = decode(raw);
  if (answer.request_id !== requestId) continue; // `alive`, or an answer to something else
  if (!answer.success) throw new Error(`${answer.error.code}: ${answer.error.message}`);
  for (const { name, dtype, shape, data, attachment } of answer.data.outputs) {
    const bytes = data ?? attachments[attachment]; // small ones come in the header
    const values = dtype === "float32" ? new Float32Array(Uint8Array.from(bytes).buffer) : `${bytes.length} bytes of ${dtype}`;
    console.log(name, shape, values);
  }
  console.log(JSON.stringify(answer.data.predictions));
  break;
}
socket.close();
