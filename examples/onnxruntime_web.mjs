// What runs in the browser, in Node: node onnxruntime_web.mjs GRADIENT.onnx < DIGIT.json (npm install onnxruntime-web; NODE_PATH).
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const ort = createRequire(import.meta.url)("onnxruntime-web");
const session = await ort.InferenceSession.create(readFileSync(process.argv[2]));
const digit = JSON.parse(readFileSync(0, "utf8"));
const image = new ort.Tensor("float32", Float32Array.from(digit.image), [1, 1, 8, 8]);
const label = new ort.Tensor("int64", BigInt64Array.from([BigInt(digit.label)]), [1]);
const result = await session.run({ image, label });
console.log(JSON.stringify({ loss: result.loss.data[0], image_grad: Array.from(result.image_grad.data) }));
