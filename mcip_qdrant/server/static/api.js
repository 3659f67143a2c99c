// Everything that goes over the wire. The key, where the server has one, lives in this tab only and travels in a header:
// there is no cookie that another site could make the browser send.

const KEY = "mcip-qdrant-key";

export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  // No header can carry anything else, and no server has such a key.
  if (!/^[!-~]+$/.test(key)) throw new Problem("A key has letters, digits and signs of ASCII only, and no spaces.", 401);
  sessionStorage.setItem(KEY, key);
}
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

const headers = (more = {}) => (hasKey() ? { ...more, Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : more);

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.", 0);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Problem(body?.error?.message ?? `The server answered ${answer.status}.`, answer.status);
}

export async function post(path, body, signal) {
  const answer = await ask(path, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
    signal,
  });
  return answer.json();
}

export async function get(path) {
  return (await ask(path, { headers: headers() })).json();
}

// An <img> cannot send a key, so with a key the picture is fetched and shown from memory.
export async function showPicture(image, path) {
  if (!hasKey()) {
    image.src = path;
    return;
  }
  const blob = await (await ask(path, { headers: headers() })).blob();
  const url = URL.createObjectURL(blob);
  image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
  image.src = url;
}

export function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem(`${file.name} cannot be read.`, 0));
    reader.readAsDataURL(file);
  });
}
