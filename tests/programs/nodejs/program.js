// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

// A server that has files and takes what it is sent, and its clients, with node:http: "serve PORT", "ask HOST PORT".

const crypto = require("node:crypto");
const http = require("node:http");

const clients = 4;
const milliseconds = 2000;

// The same on both sides.
const content = Buffer.from(Array.from({ length: 1 << 18 }, (_, number) => `${number}\n`).join("")).subarray(0, 1 << 20);

function serve(port) {
	const server = http.createServer((request, answer) => {
		if (request.method === "GET") {
			answer.end(content.subarray(0, Number(request.url.slice(1))));
			return;
		}
		const sum = crypto.createHash("sha256");
		request.on("data", (data) => sum.update(data));
		request.on("end", () => answer.end(sum.digest()));
	});
	server.listen(Number(port), "0.0.0.0");
}

// Makes a request, with a body if there is one; gives the answer's.
function once(options, body) {
	return new Promise((resolve, reject) => {
		const request = http.request(options, (answer) => {
			const parts = [];
			answer.on("data", (data) => parts.push(data));
			answer.on("end", () => resolve(Buffer.concat(parts)));
			answer.on("error", reject);
		});
		request.on("error", reject);
		request.end(body);
	});
}

async function measure(what, options, body, expected) {
	const begun = performance.now();
	let count = 0;
	const client = async () => {
		while (performance.now() - begun < milliseconds) {
			if (!(await once(options, body)).equals(expected)) {
				throw new Error(`${what}: not what was expected`);
			}
			count++;
		}
	};
	await Promise.all(Array.from({ length: clients }, client));
	console.log(`figure ${(1000 * count) / (performance.now() - begun)} requests/s ${what}`);
}

async function ask(host, port) {
	const agent = new http.Agent({ keepAlive: true, maxSockets: clients });
	const options = { host, port, agent };
	for (const size of [1 << 10, 1 << 20]) {
		const get = { ...options, path: `/${size}` };
		await measure(`GET, ${size >> 10} KiB`, get, undefined, content.subarray(0, size));
	}
	const sum = crypto.createHash("sha256").update(content).digest();
	const post = { ...options, method: "POST", path: "/" };
	await measure("POST, 1024 KiB, of which the server makes a SHA-256", post, content, sum);
	agent.destroy();
}

const [what, ...rest] = process.argv.slice(2);
({ serve, ask })[what](...rest);
