// The search for clients: `user:10000 channel:news`. A word without a key is recognised by its form.

const KEYS = new Map([
  ["id", "c"], ["c", "c"], ["client", "c"], ["user", "user"], ["u", "user"], ["channel", "channel"], ["address", "address"],
  ["ip", "address"], ["route", "route"], ["path", "route"], ["node", "node"], ["n", "node"],
]);
const WORD = /(?:([a-z]+):)?(?:"([^"]*)"|(\S+))/gi;

/** Parses a search. Returns the filters, or throws an error that says what is wrong. */
export function parseQuery(text) {
  const filters = new Map();
  for (const [whole, rawKey, quoted, plain] of text.matchAll(WORD)) {
    const key = KEYS.get(rawKey?.toLowerCase());
    const value = key ? quoted ?? plain : quoted ?? whole;
    const [name, filter] = key ? [key, value] : [kindOf(value), value];
    if (filters.has(name)) throw new Error(`The search names two values of ${name === "c" ? "id" : name}.`);
    filters.set(name, filter);
  }
  if (filters.has("c") && filters.size > 1) throw new Error("A client id is searched for alone.");
  if (filters.has("c") && !/^\d{1,20}$/.test(filters.get("c"))) throw new Error("A client id consists of digits.");
  if (filters.has("node") && !/^\d{1,4}$/.test(filters.get("node"))) throw new Error("A node is a number from 0 to 1023.");
  return filters;
}

/** Guesses what a word without a key is. Client ids have 15 digits or more. */
function kindOf(word) {
  if (/^\d{15,20}$/.test(word)) return "c";
  if (/^\d{1,3}(\.\d{1,3}){3}(\/\d+)?$/.test(word)) return "address";
  if (/^[0-9a-f]*:[0-9a-f:.]*(\/\d+)?$/i.test(word)) return "address";
  return word.startsWith("/") ? "route" : "user";
}

/** Writes filters as a search. */
export function writeQuery(filters) {
  return [...filters].map(([key, value]) => `${key === "c" ? "id" : key}:${/\s/.test(value) || value === "" ? `"${value}"` : value}`).join(" ");
}
