// The page of `mlx-eagle serve`: a chat that shows what was drafted. No library, no other host.
// What a model wrote is text: it enters the document as text nodes, or through the allow-list below.

const at = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

// ---- Conversations are kept in this browser ----

const opened = new Promise((resolve, reject) => {
  const request = indexedDB.open("mlx-eagle", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("talks", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});
const stored = async (mode, use) => {
  const store = (await opened).transaction("talks", mode).objectStore("talks");
  return new Promise((resolve, reject) => {
    const request = use(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
};
const fresh = () => ({ id: `${Date.now()}-${Math.random()}`, time: Date.now(), messages: [] });
let talk = fresh();
let running = null;

const save = async () => {
  talk.time = Date.now();
  if (talk.messages.length) await stored("readwrite", (store) => store.put(talk));
  sessionStorage.setItem("talk", talk.id);
  await showList();
};
const showList = async () => {
  const talks = (await stored("readonly", (s) => s.getAll())).sort((a, b) => b.time - a.time);
  at("list").replaceChildren(...talks.map((each) => {
    const item = make("li");
    const open = make("button", "", each.messages[0]?.content.slice(0, 60) || "empty");
    open.onclick = () => { talk = each; sessionStorage.setItem("talk", each.id); show(); };
    const drop = make("button", "", "Delete");
    drop.setAttribute("aria-label", `Delete ${open.textContent}`);
    drop.onclick = async () => {
      await stored("readwrite", (store) => store.delete(each.id));
      if (each.id === talk.id) { talk = fresh(); show(); }
      await showList();
    };
    item.append(open, drop);
    return item;
  }));
};

// ---- What is shown ----

const show = () => {
  at("talk").replaceChildren(...talk.messages.map((message, place) => article(message, place).node));
  at("talk").lastElementChild?.scrollIntoView({ block: "end" });
};

const article = (message, place) => {
  const node = make("article", message.role);
  if (message.role === "user") {
    node.textContent = message.content;
    const tools = make("div", "tools");
    tools.append(button("Edit", () => {
      at("text").value = message.content;
      talk.messages = talk.messages.slice(0, place);
      show(); at("text").focus();
    }));
    node.append(tools);
    return { node };
  }
  const thought = make("details", "thought");
  thought.append(make("summary", "", "Thought"), make("div", "", message.reasoning_content || ""));
  thought.hidden = !message.reasoning_content;
  const said = make("div", "said", message.content);
  const tree = make("div", "tree");
  const figures = make("div", "figures", message.figures || "");
  const tools = make("div", "tools");
  node.append(thought, said, tree, figures, tools);
  if (message.error) node.append(make("p", "error", message.error));
  const parts = { node, thought: thought.lastChild, details: thought, said, tree, figures, tools };
  said.onpointerover = (event) => {
    const round = event.target.dataset.round;
    if (round !== undefined) drawTree(tree, message.rounds, Number(round));
  };
  if (place !== undefined && message.content) finish(parts, message, place);
  return parts;
};

const button = (text, use) => {
  const element = make("button", "", text);
  element.type = "button";
  element.onclick = use;
  return element;
};

const finish = async (parts, message, place) => {
  parts.tools.replaceChildren(
    button("Copy", () => navigator.clipboard.writeText(message.content)),
    button("Answer anew", () => { talk.messages = talk.messages.slice(0, place); answer(); }),
    button("Same text without drafts", () => compare(parts, message, place)),
  );
  if (message.rounds?.length) {
    let shown = message.rounds.length - 1;
    const step = (by) => {
      shown = Math.min(Math.max(shown + by, 0), message.rounds.length - 1);
      drawTree(parts.tree, message.rounds, shown);
    };
    parts.tools.append(button("◂ round", () => step(-1)), button("round ▸", () => step(1)));
  }
  const html = await toHtml(message.content);
  if (html === undefined) return;
  render(parts.said, html);
  tint(parts.said, message.pieces || []);
};

const known = new Map(); // HTML of texts that were shown before
const toHtml = async (text) => {
  if (!known.has(text)) {
    const response = await call("page/markdown", { text }).catch(() => null);
    if (response?.ok) known.set(text, (await response.json()).html);
  }
  return known.get(text);
};

// What Markdown may become; everything else is its text.
const TAGS = new Set(("P BR HR EM STRONG S CODE PRE BLOCKQUOTE UL OL LI H1 H2 H3 H4 H5 H6 A "
  + "TABLE THEAD TBODY TR TH TD").split(" "));
const render = (target, html) => {
  const copy = (from, to) => {
    for (const child of from.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) to.append(child.textContent);
      if (child.nodeType !== Node.ELEMENT_NODE) continue;
      const inner = TAGS.has(child.tagName) ? document.createElement(child.tagName) : to;
      if (child.tagName === "A" && /^https?:/.test(child.getAttribute("href") || "")) {
        inner.href = child.getAttribute("href");
        inner.rel = "noreferrer noopener";
        inner.target = "_blank";
      }
      copy(child, inner);
      if (inner !== to) to.append(inner);
      if (child.tagName === "PRE") {
        to.append(button("Copy code", () => navigator.clipboard.writeText(child.textContent)));
      }
    }
  };
  target.replaceChildren();
  target.classList.add("done");
  copy(new DOMParser().parseFromString(html, "text/html").body, target);
};

// A piece of an answer: tinted if it was drafted, and with its round, if that drafted anything.
const piece = (text, isDraft, round) => {
  if (!isDraft && round === null) return text;
  const element = make(isDraft ? "i" : "span", "", text);
  if (round !== null) element.dataset.round = round;
  return element;
};

// Tints rendered Markdown: its characters are those of the text, in order, but for marks left out.
const tint = (target, pieces) => {
  const raw = pieces.map(([text]) => text).join("");
  const owners = pieces.flatMap(([text], place) => new Array(text.length).fill(place));
  const walker = document.createTreeWalker(target, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) if (!walker.currentNode.parentNode.closest("button")) nodes.push(walker.currentNode);
  let at = 0;
  for (const node of nodes) {
    const runs = [];
    for (const char of node.data) {
      const found = raw.indexOf(char, at);
      const owner = found < 0 ? null : owners[found];
      if (found >= 0) at = found + char.length;
      if (runs.length && runs.at(-1).owner === owner) runs.at(-1).text += char;
      else runs.push({ owner, text: char });
    }
    node.replaceWith(...runs.map(({ owner, text }) =>
      owner === null ? text : piece(text, pieces[owner][1], pieces[owner][2])));
  }
};

const drawTree = (target, rounds, place) => {
  const tree = rounds[place];
  const lines = [`round ${place + 1} of ${rounds.length}: ● accepted ○ not`];
  const draw = (node, depth) => {
    const mark = tree.path.includes(node) ? "●" : "○";
    lines.push(`${"  ".repeat(depth)}${mark} ${JSON.stringify(tree.tokens[node]).slice(1, -1)}`);
    tree.parents.forEach((parent, child) => { if (child && parent === node) draw(child, depth + 1); });
  };
  draw(0, 0);
  target.textContent = lines.join("\n");
};

// ---- Asking ----

const call = (path, body, signal) => {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
};

const request = (messages, more) => {
  const system = at("system").value.trim();
  const body = { stream: true, x_eagle: true, speculate: at("speculate").checked, ...more };
  for (const [field, id] of [["temperature", "temperature"], ["max_tokens", "max"], ["seed", "seed"]]) {
    if (at(id).value !== "") body[field] = Number(at(id).value);
  }
  if (at("tree").value.trim()) body.tree = at("tree").value.trim();
  body.messages = messages.map(({ role, content, reasoning_content }) =>
    reasoning_content ? { role, content, reasoning_content } : { role, content });
  if (system) body.messages.unshift({ role: "system", content: system });
  return body;
};

// Yields the JSON of each event; comments (how much of the prompt is read) are handed to `note`.
async function* events(response, note) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    held += decoder.decode(value, { stream: !done });
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith(": ")) note(block.slice(2));
      else if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
    }
    if (done) return;
  }
}

const describe = (stats) => {
  const parts = [`${stats.predicted_n} tokens, ${stats.predicted_per_second.toFixed(1)} per second`];
  if (stats.plain_per_second) {
    parts.push(`${(stats.predicted_per_second / stats.plain_per_second).toFixed(2)} × plain`);
  }
  if (stats.draft_n) parts.push(`${stats.draft_n_accepted} of ${stats.draft_n} drafted accepted`);
  if (stats.speculation !== "on") parts.push(`drafting ${stats.speculation}`);
  parts.push(`prompt: ${stats.cache_n} kept, ${stats.prompt_n} read`);
  return parts.join(" · ");
};

const take = (chunk, message, parts) => {
  if (chunk.error) throw new Error(chunk.error.message);
  const own = chunk.x_eagle;
  if (own?.stats) {
    message.figures = parts.figures.textContent = describe(own.stats);
    at("speed").textContent = message.figures.split(" · ").slice(0, 2).join(" · ");
  } else if (own) {
    // A round ends with a token of the target's own; one without a tree drafted nothing.
    let round = message.now?.isDraft ? message.now.round : null;
    if (own.tree) {
      round = message.rounds.push(own.tree) - 1;
      drawTree(parts.tree, message.rounds, round);
    }
    message.now = { isDraft: own.from_draft, round };
  }
  const delta = chunk.choices[0]?.delta || {};
  if (delta.reasoning_content) {
    message.reasoning_content = (message.reasoning_content || "") + delta.reasoning_content;
    parts.thought.textContent = message.reasoning_content;
    parts.details.hidden = false;
  }
  if (delta.content) {
    message.content += delta.content;
    const { isDraft = false, round = null } = message.now || {};
    message.pieces.push([delta.content, isDraft, round]);
    parts.said.append(piece(delta.content, isDraft, round));
  }
};

const stream = async (body, message, parts) => {
  running = new AbortController();
  at("send").hidden = true; at("stop").hidden = false;
  parts.node.setAttribute("aria-busy", "true"); // or every token would be read out
  try {
    const response = await call("v1/chat/completions", body, running.signal);
    if (!response.ok) throw new Error((await response.json()).error.message);
    const note = (text) => { if (!message.content) parts.figures.textContent = text; };
    for await (const chunk of events(response, note)) {
      const isAtEnd = at("talk").scrollHeight - at("talk").scrollTop - at("talk").clientHeight < 60;
      take(chunk, message, parts);
      if (isAtEnd) parts.node.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      message.error = error.message;
      parts.node.append(make("p", "error", error.message));
    }
  } finally {
    running = null;
    parts.node.removeAttribute("aria-busy");
    at("send").hidden = false; at("stop").hidden = true;
    delete message.now;
  }
};

const freshAnswer = () => ({ role: "assistant", content: "", pieces: [], rounds: [] });

const answer = async () => {
  show();
  const message = freshAnswer();
  const parts = article(message);
  at("talk").append(parts.node);
  const place = talk.messages.length;
  const asked = request(talk.messages, {});
  talk.messages.push(message);
  await save(); // what was asked, and at the end what was answered, before anything is rendered
  await stream(asked, message, parts);
  await save();
  await finish(parts, message, place);
};

const compare = async (parts, message, place) => {
  const again = freshAnswer();
  const shown = article(again);
  parts.node.after(shown.node);
  await stream(request(talk.messages.slice(0, place), { speculate: false }), again, shown);
  const isSame = again.content === message.content;
  shown.figures.prepend(isSame ? "The same text · " : "Another text (a seed makes draws repeatable) · ");
};

// ---- Controls ----

at("ask").onsubmit = (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || running) return;
  at("text").value = "";
  talk.messages.push({ role: "user", content: text });
  answer();
};
at("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
};
at("stop").onclick = () => running?.abort();
document.onkeydown = (event) => { if (event.key === "Escape") running?.abort(); };
at("new").onclick = () => { talk = fresh(); sessionStorage.setItem("talk", talk.id); show(); at("text").focus(); };
at("menu").onclick = () => {
  at("side").hidden = !at("side").hidden;
  at("menu").setAttribute("aria-expanded", String(!at("side").hidden));
};
at("key").onchange = () => sessionStorage.setItem("key", at("key").value.trim());
at("export").onclick = async () => {
  const data = JSON.stringify(await stored("readonly", (store) => store.getAll()));
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
  link.download = "conversations.json";
  link.click();
  URL.revokeObjectURL(link.href);
};
at("import").onchange = async () => {
  const text = await at("import").files[0].text();
  let talks;
  try { talks = JSON.parse(text); } catch { talks = null; }
  if (!Array.isArray(talks)) { at("speed").textContent = "That file holds no conversations."; return; }
  for (const each of talks) {
    if (typeof each?.id === "string" && Array.isArray(each.messages)) {
      await stored("readwrite", (store) => store.put(each));
    }
  }
  await showList();
};

const last = sessionStorage.getItem("talk");
talk = (last && await stored("readonly", (store) => store.get(last))) || talk;
show();
showList();
