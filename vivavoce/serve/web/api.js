// The server, as this page sees it: requests with the token, and errors as sentences.

const HASH = new URLSearchParams(location.hash.slice(1));
if (HASH.has("token")) {
  sessionStorage.setItem("token", HASH.get("token"));
  history.replaceState(null, "", location.pathname); // not in the address bar, not in a screenshot
}
export const token = () => sessionStorage.getItem("token") ?? "";
export const setToken = (text) => sessionStorage.setItem("token", text);
export const authorization = () => (token() ? { Authorization: `Bearer ${token()}` } : {});
export const NO_SERVER = "The server does not answer. Is `vivavoce serve` still running? This page keeps trying.";

export class ServerError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...authorization(), ...options.headers } });
  } catch {
    throw new ServerError("no-server", NO_SERVER);
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new ServerError(told?.error?.code ?? "internal", sentence(told?.error?.message ?? `The server answered ${answer.status}.`));
  }
  return answer;
}

export const json = async (path, options) => (await request(path, options)).json();

// The server's messages are lower case and without a full stop, like those of the command line; a name stays as it is.
export const sentence = (text) => text.replace(/^[a-z]+(?=[ ,])/, (word) => word[0].toUpperCase() + word.slice(1)) + (/[.?!]$/.test(text) ? "" : ".");
