// The banner about nodes whose part is missing in what is shown.

import { ago, byId } from "./dom.js";
import { on, state } from "./samples.js";

const lists = new Map();

/** Notes the nodes that did not answer for a list. */
export function showMissing(list, nodes) {
  lists.set(list, nodes);
  draw();
}

function draw() {
  const nodes = [...new Set([...state.missing, ...[...lists.values()].flat()])].sort((a, b) => a - b);
  const banner = byId("missing");
  const text = nodes.length === 0 ? "" : nodes.length === 1
    ? `Node ${nodes[0]} does not answer. What it holds is missing here.`
    : `Nodes ${nodes.join(", ")} do not answer. What they hold is missing here.`;
  banner.hidden = nodes.length === 0;
  if (banner.textContent !== text) banner.textContent = text;
}

/** Says which nodes were lost recently, for a list that is empty or a tap: what they held is not `done`, such as listed. */
export function lostText(done) {
  const lost = state.nodes.filter((node) => typeof node.lost_ms === "number");
  return lost.map((node) => ` Node ${node.id} was lost ${ago(node.lost_ms)}: what was there is not ${done}.`).join("");
}

export function setUp() {
  on("sample", draw);
}
