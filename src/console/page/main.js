// The start of the console: log-in, keyboard, theme, and the state of the connection to the node.

import { call, read, setCredentials } from "./api.js";
import { byId, duration, onSubmit, toast } from "./dom.js";
import * as backends from "./backends.js";
import * as channels from "./channels.js";
import * as clients from "./clients.js";
import * as messages from "./messages.js";
import * as missing from "./missing.js";
import * as overview from "./overview.js";
import * as panel from "./panel.js";
import * as samples from "./samples.js";
import * as tap from "./tap.js";
import * as topics from "./topics.js";
import * as views from "./views.js";

const hasUsers = document.documentElement.dataset.users === "true";
let countdown;

// ---- log-in ----

async function logIn() {
  const isBasic = byId("login-form").elements.kind.value === "basic";
  setCredentials(isBasic ? byId("login-name").value : null, byId("login-secret").value);
  byId("login-error").textContent = "";
  try {
    await enter();
    byId("login-form").reset();
    showKind();
  } catch (error) {
    setCredentials(null, "");
    byId("login-error").textContent = error.isLoggedOut ? "No user has these credentials." : error.message;
    byId("login-secret").select();
  }
}

/** Finds out what the user may do, and shows the console. */
async function enter() {
  try {
    await call("node.list");
    samples.state.isAdmin = true;
  } catch (error) {
    if (!error.isDenied) throw error;
    // Whoever may not read lists may still look at this, unless the user comes from a wrong address.
    await read("version");
    Object.assign(samples.state, { isAdmin: false, denial: error.message });
  }
  byId("login").hidden = true;
  byId("top").hidden = false;
  byId("logout").hidden = !hasUsers;
  samples.start();
  views.showFromAddress();
  byId("main").focus();
}

function logOut(why = "") {
  samples.stop();
  tap.stop();
  messages.stop();
  for (const { clear } of [tap, messages]) clear();
  topics.forget();
  backends.forget();
  clients.forget();
  channels.forget();
  setCredentials(null, "");
  views.hideAll();
  showLink(null);
  byId("top").hidden = true;
  byId("login").hidden = false;
  byId("login-error").textContent = why;
  byId(byId("login-name-label").hidden ? "login-secret" : "login-name").focus();
}

/** Shows the fields of the chosen kind of credentials. */
function showKind() {
  const isBasic = byId("login-form").elements.kind.value === "basic";
  byId("login-name-label").hidden = !isBasic;
  byId("login-name").required = isBasic;
  byId("login-secret-name").textContent = isBasic ? "Password" : "Token";
}

// ---- the connection to the node ----

function showLink(link) {
  clearInterval(countdown);
  const isLost = link !== null && !link.isLive;
  byId("lost").hidden = !isLost;
  byId("link").className = `link ${link === null ? "" : isLost ? "lost" : "live"}`;
  byId("link").textContent = link === null ? "" : isLost ? "disconnected" : `live · ${duration(Math.round(link.tripMs))}`;
  if (!isLost) return;
  if (link.error.isLoggedOut && hasUsers) return logOut("The node does not accept these credentials any more.");
  byId("lost-why").textContent = `${link.error.message} What is shown may be out of date.`;
  const write = () => {
    const seconds = Math.ceil((link.retryAt - Date.now()) / 1000);
    byId("lost-when").textContent = seconds > 0 ? `Trying again in ${seconds} s…` : "Trying again…";
  };
  write();
  countdown = setInterval(write, 1000);
}

// ---- theme ----

const THEMES = [["", "◐", "as the system prefers"], ["light", "☀", "light"], ["dark", "☾", "dark"]];
let theme = 0;

function showTheme() {
  const [name, sign, description] = THEMES[theme];
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = sign;
  byId("theme").title = `Colours: ${description}`;
  byId("theme").setAttribute("aria-label", `Colours: ${description}`);
}

function nextTheme() {
  theme = (theme + 1) % THEMES.length;
  showTheme();
  toast(`Colours: ${THEMES[theme][2]}.`);
}

// ---- keyboard ----

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("top").hidden || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.matches("input:not([type=radio], [type=checkbox]), textarea, select");
  if (event.key === "Escape") return onEscape(event.target);
  if (isTyping) return;
  if (/^[1-7]$/.test(event.key)) views.goToNumber(Number(event.key));
  else if (event.key === "/") focusSearch();
  else if (event.key === "r") views.currentView()?.refresh?.();
  else if (event.key === "?") byId("help").showModal();
  else return;
  event.preventDefault();
}

function onEscape(target) {
  if (panel.isPanelOpen()) return panel.closePanel();
  if (target.matches(".search") && target.value === "") target.blur();
}

/** Goes to the search of this view, or to that of the clients. */
function focusSearch() {
  const own = document.querySelector(".view:not([hidden]) .search");
  if (!own) views.goTo("clients");
  (own ?? byId("clients-query")).select();
}

// ---- the start ----

for (const part of [missing, panel, overview, clients, channels, topics, backends, tap, messages]) part.setUp();
views.setUp([overview, clients, channels, topics, backends, tap, messages].map(({ view }) => view));
samples.on("link", showLink);
addEventListener("keydown", onKey);
onSubmit("login-form", logIn);
byId("login-form").addEventListener("change", showKind);
byId("logout").addEventListener("click", () => logOut());
byId("lost-retry").addEventListener("click", samples.readNow);
byId("theme").addEventListener("click", nextTheme);
byId("keys").addEventListener("click", () => byId("help").showModal());
showTheme();

if (hasUsers) logOut();
else enterUntilReached();

/** Enters without credentials. Tries again while the node cannot be reached. */
async function enterUntilReached() {
  try {
    await enter();
  } catch (error) {
    showLink({ isLive: false, error, retryAt: Date.now() + 3000 });
    setTimeout(enterUntilReached, 3000);
  }
}
