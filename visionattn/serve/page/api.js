// Requests to the server. A token, if the server needs one, is kept until the tab is closed.
const RETRIES = 8;
let token = sessionStorage.getItem("token") ?? "";

export class RequestError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

const wait = seconds => new Promise(done => setTimeout(done, 1000 * seconds));

function askToken() {
  const dialog = document.getElementById("token"), field = document.getElementById("tokenvalue");
  if (!dialog.open) {
    field.value = "";
    dialog.showModal();
  }
  return new Promise(done => dialog.addEventListener("close", () => {
    token = field.value.trim();
    sessionStorage.setItem("token", token);
    done();
  }, { once: true }));
}

async function request(path, body) {
  for (let attempt = 0; ; attempt++) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let answer;
    try {
      answer = await fetch(path, { method: body ? "POST" : "GET", headers, body });
    } catch {
      throw new RequestError(0, "The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await askToken();
    } else if (answer.status === 503 && attempt < RETRIES) {
      await wait(Number(answer.headers.get("Retry-After")) || 2);
    } else {
      const text = await answer.json().then(content => content.error, () => answer.statusText);
      throw new RequestError(answer.status, text);
    }
  }
}

export const needsToken = () => token !== "";

export const getJson = async path => (await request(path)).json();

export const getBlob = async path => (await request(path)).blob();

/** Post a file with options, and return the JSON answer. */
export async function post(path, file, name, options) {
  const form = new FormData();
  form.append("files", file, name);
  for (const [key, value] of Object.entries(options)) {
    if (value !== null && value !== undefined && value !== false) form.append(key, value);
  }
  return (await request(path, form)).json();
}
