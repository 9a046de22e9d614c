// Viewers of one engine, in a browser or on Node with `ws`: `watch(WebSocket, url, count, everyMs)`
// opens `count` connections, one each `everyMs`, and resolves when all have been closed to
// {name: {code, extensions, sums}}: a checksum (FNV-1a, 32 bits) of each message's UTF-8.

function sumOf(bytes) {
  let sum = 0x811c9dc5;
  for (const byte of bytes) sum = Math.imul(sum ^ byte, 0x01000193);
  return sum >>> 0;
}

function watchOne(WebSocket, url, binary) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url, binary ? "a.v2" : "a.v1");
    const sums = [];
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      const text = typeof data === "string";
      if (text === binary) sums.push("the wrong kind of message");
      sums.push(sumOf(text ? new TextEncoder().encode(data) : new Uint8Array(data)));
    };
    socket.onerror = () => {}; // onclose follows, with its code
    socket.onclose = ({ code }) => resolve({ code, extensions: socket.extensions, sums });
  });
}

async function watch(WebSocket, url, count, everyMs) {
  const watching = [];
  for (let number = 0; number < count; number += 1) {
    watching.push(watchOne(WebSocket, `${url}/c/${number}`, number % 2 === 1));
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
  return Object.fromEntries((await Promise.all(watching)).entries());
}
